"""What machine and libraries a result comes from."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compress.accelerators import cards_to_compute_on
from compress.quantities import format_memory

PACKAGES = (
    "compress",
    "torch",
    "transformers",
    "lm-eval",
    "onnxruntime",
    "bitsandbytes",
    "compressed-tensors",
)
NUMERICS = ("torch", "transformers")
"""The libraries whose version is part of every key: their results may differ in the last bits."""


@cache
def environment() -> dict[str, str]:
    """Return machine, memory and versions, for the record."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": processor(),
        "cores": str(os.cpu_count()),
        "memory": format_memory(memory),
        "device": device_class(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **package_versions(PACKAGES),
    }


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package, leaving out what is not installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    """Return the processor's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def home() -> Path:
    """Return the folder everything is kept in: ``$COMPRESS_HOME``, by default ``~/.cache/compress``."""
    return Path(os.environ.get("COMPRESS_HOME") or "~/.cache/compress").expanduser().absolute()


def device_class() -> str:
    """Return ``cpu``, or the names of the NVIDIA cards that torch will compute on, without importing it.

    What a result's key holds, so a card that the installed torch cannot use, or that is hidden, does not count.
    """
    return ", ".join(card.name for card in cards_to_compute_on()) or "cpu"


def hardware_fingerprint() -> str:
    """Return what a timing depends on: a latency measured elsewhere is another measurement."""
    return f"{processor()} x{os.cpu_count()}, {device_class()}"


def peak_memory_bytes() -> int:
    """Return this process's own peak resident set (VmHWM): `ru_maxrss` would be inherited from the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no VmHWM")


def available_memory_bytes() -> int:
    """Return the memory a new process could use without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
