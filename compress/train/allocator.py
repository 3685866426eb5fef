"""Keeping freed memory: on a processor, asking the system for it anew costs more than the work done in it.

The C library gives every large block back to the system when it is freed, and each page of the next one is then
handed out and zeroed on first touch. A training step frees and asks for the same hundreds of megabytes again; on a
virtual machine that took more than half of a step at 131,072 ids.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""`mallopt`'s parameters in glibc's malloc.h."""
_DEFAULTS = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 2**10}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Have this process keep what it frees, up to 2 GiB at the end of its heap, inside this block.

    Yields whether it can: only glibc offers it. Results are the same; the peak is too, up to what lies between blocks.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    library = ctypes.CDLL(None)
    done = [library.mallopt(name, value) for name, value in _KEEPING.items()]
    try:
        yield all(done)
    finally:
        for name, value in _DEFAULTS.items():
            library.mallopt(name, value)
        library.malloc_trim(0)
