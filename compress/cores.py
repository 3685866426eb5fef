"""How many cores this process may use, by the machine, by what it is bound to, and by its container's share of time;
and what they can do.
"""

import os
from functools import cache
from pathlib import Path

LIMITS = Path("/sys/fs/cgroup")
"""Where a container is told how much of the processor it may use."""

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@cache
def multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware; taken for granted where the kernel does not tell.

    For plans, which load no torch; `models.device.has_fast_bf16` says what torch makes use of.
    """
    if not CPUINFO.exists():
        return True
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return not flags or bool(flags & BF16_FLAGS)


def usable_cores() -> int:
    """Return how many processes can compute at once: at least 1; a container's 1.5 cores are 1."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota())))


def _quota() -> float:
    """Return how many cores' time a container is given; infinite where that is not limited."""
    try:
        if (LIMITS / "cpu.max").exists():
            quota, period = (LIMITS / "cpu.max").read_text().split()
        else:  # the first version of control groups
            quota, period = (
                (LIMITS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else float("inf")
    except FileNotFoundError:
        return float("inf")
