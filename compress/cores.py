"""How many cores this process may use: by the machine, by what it is bound to, and by its container's share of time."""

import os
from pathlib import Path

LIMITS = Path("/sys/fs/cgroup")
"""Where a container is told how much of the processor it may use."""


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
