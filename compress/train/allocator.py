"""Keeping freed memory: on a processor, asking the system for it anew costs more than the work done in it.

The C library gives every large block back to the system when it is freed, and each page of the next one is then
handed out and zeroed on first touch. A training step frees and asks for the same hundreds of megabytes again; on a
virtual machine that took more than half of a step at 131,072 ids.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""`mallopt`'s parameters in glibc's malloc.h."""
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, up to 2 GiB at the end of its heap, for as long as it lives.

    Returns whether it could: only glibc offers it. Results are the same; the peak is too, up to what lies between
    blocks.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _LARGEST_INT))
