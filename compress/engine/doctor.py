"""What this machine can do, what is missing, and the command that mends it."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from compress.accelerators import Listing, cards_to_compute_on, listing, torch_has_cuda
from compress.environment import available_memory_bytes, home, package_versions, processor
from compress.machine import describe, this_machine
from compress.nvml import Seen
from compress.quantities import format_file_size, format_memory

NEEDED = ("torch", "transformers", "lm-eval", "bitsandbytes", "compressed-tensors")
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
CUDA_TORCH = "install a build of torch for CUDA: https://pytorch.org/get-started/locally has the command"
"""Which builds there are depends on the version of torch, so none is named here."""
LOW_MEMORY = 4 * 2**30
LOW_DISK = 5 * 10**9


class Finding(NamedTuple):
    """One line of the examination: what was looked at, what was found, and what to do if it is not well."""

    what: str
    found: str
    well: bool = True
    remedy: str = ""


def doctor() -> list[Finding]:
    """Examine python, packages, processor, memory, accelerator, disk and hub; run nothing heavy."""
    return [*_software(), *_hardware(), *_store(), *_hub()]


def _software() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python, sys.version_info >= (3, 11), "install Python 3.11 or newer")
    for names, command in ((NEEDED, "pip install compress"), (FOR_ONNX, "pip install 'compress[onnx]'")):
        found = package_versions(names)
        for name in names:
            yield Finding(name, found.get(name, "missing"), name in found, command)


def _hardware() -> Iterator[Finding]:
    yield Finding("processor", f"{processor()}, {os.cpu_count()} cores")
    memory = available_memory_bytes()
    yield Finding("memory", f"{format_memory(memory)} available", memory > LOW_MEMORY, "close other programs")
    yield from _accelerator(listing())


def _accelerator(found: Listing) -> Iterator[Finding]:
    """Examine the cards, what torch makes of them, and what is compiled for them at run time."""
    if not found.cards:
        yield Finding("accelerator", "none: everything runs on the processor")
        return
    by_nvml = found.source == "NVML"
    yield Finding(
        "NVML",
        "found" if by_nvml else f"{found.trouble}; cards are known from {found.source}, their memory is not",
        by_nvml,
        "libnvidia-ml.so.1 comes with the driver; in a container, NVIDIA_DRIVER_CAPABILITIES needs `utility`",
    )
    names = ", ".join(card.name for card in found.cards)
    if not torch_has_cuda():
        torch_version = package_versions(("torch",)).get("torch", "missing")
        yield Finding(
            "accelerator", f"{names}, but torch {torch_version} is built without CUDA", False, CUDA_TORCH
        )
        return
    cards = cards_to_compute_on()
    if not cards:
        setting = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        yield Finding(
            "accelerator", f"{names}, hidden by CUDA_VISIBLE_DEVICES={setting!r}: the processor works"
        )
        return
    yield _seen_by_torch(cards)
    yield from _what_triton_needs()


def _seen_by_torch(cards: tuple[Seen, ...]) -> Finding:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(card.name for card in cards)
    if there == len(cards):
        return Finding("accelerator", f"{names} ({describe(this_machine())})")
    found = f"{names}, of which torch (built for CUDA {torch.version.cuda}) can use {there}"
    driver = (
        f"update the driver to one for CUDA {torch.version.cuda} or newer, or {CUDA_TORCH}; start a container"
    )
    return Finding("accelerator", found, False, f"{driver} with all cards (`--gpus all`)")


def _what_triton_needs() -> Iterator[Finding]:
    """Examine what triton compiles its launcher with; without it distillation goes the slower way."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    found = compiler or "missing: triton compiles with it, and distillation is slower without"
    packages = "apt-get install gcc (Debian, Ubuntu), dnf install gcc (Fedora, RHEL), or set CC to a compiler"
    yield Finding("C compiler", found, compiler is not None, packages)
    header = _include_folder() / "Python.h"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    headers = f"apt-get install python{python}-dev (Debian, Ubuntu), dnf install python{python}-devel (Fedora, RHEL)"
    there = header.exists()
    yield Finding(
        "Python.h", str(header) if there else f"missing ({header}): triton compiles with it", there, headers
    )
    has_triton = find_spec("triton") is not None
    yield Finding("triton", "found" if has_triton else "missing", has_triton, "pip install triton")


def _include_folder() -> Path:
    """Return where triton looks for Python's headers: Debian's own scheme names a folder that holds none."""
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))


def _store() -> Iterator[Finding]:
    root = home()
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    roomy = free > LOW_DISK
    yield Finding(
        "store",
        f"{root}, {format_file_size(free)} free",
        roomy,
        "`compress gc`, or set COMPRESS_HOME to a larger disk",
    )
    writable = os.access(existing, os.W_OK)
    yield Finding(
        "store is writable", "yes" if writable else "no", writable, "set COMPRESS_HOME to a folder of yours"
    )


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE"):
        yield Finding("hub", "switched off (HF_HUB_OFFLINE is set)")
    elif find_spec("huggingface_hub"):
        token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: gated models need one"
        yield Finding("hub", token)
