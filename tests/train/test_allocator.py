import platform
import subprocess
import sys

import pytest

HELD = """
import sys
import torch
from compress.train.allocator import keep_freed_memory

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
block = torch.ones(64 * 2**20)
before = resident()
del block
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
@pytest.mark.parametrize(("asked", "given_back"), [("keep", False), ("leave", True)])
def test_freed_memory_is_kept_where_that_is_asked(asked, given_back):
    found = subprocess.run([sys.executable, "-c", HELD, asked], capture_output=True, text=True, check=True)
    assert (int(found.stdout) > 128 * 2**20) == given_back
