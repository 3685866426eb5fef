import platform
import subprocess
import sys

import pytest

HELD = """
import sys
import torch
from contextlib import nullcontext
from compress.train.allocator import freed_memory_kept

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

with freed_memory_kept() if sys.argv[1] == "keep" else nullcontext(True) as can:
    assert can
    block = torch.ones(64 * 2**20)
    before = resident()
    del block
    inside = before - resident()
print(inside, before - resident())
"""


# Elsewhere (musl, macOS) there is no such switch, and `freed_memory_kept` says that it cannot.
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has the switch; others say they cannot"
)
@pytest.mark.parametrize(("asked", "given_back"), [("keep", False), ("leave", True)])
def test_freed_memory_is_kept_where_that_is_asked(asked, given_back):
    found = subprocess.run([sys.executable, "-c", HELD, asked], capture_output=True, text=True, check=True)
    inside, afterwards = map(int, found.stdout.split())
    assert (inside > 128 * 2**20) == given_back
    assert afterwards > 128 * 2**20
