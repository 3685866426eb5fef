"""What this machine can do, what is missing, and the command that mends it."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from compress.environment import available_memory_bytes, device_class, home, package_versions, processor

GIB = 2**30
NEEDED = ("torch", "transformers", "lm-eval", "bitsandbytes", "compressed-tensors")
FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
LOW_MEMORY_GIB = 4
LOW_DISK_GIB = 5


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
    memory = available_memory_bytes() / GIB
    yield Finding("memory", f"{memory:.1f} GiB available", memory > LOW_MEMORY_GIB, "close other programs")
    card = device_class()
    if card == "cpu":
        yield Finding("accelerator", "none: everything runs on the processor")
        return
    import torch

    mend = (
        "install a CUDA build of torch: pip install torch --index-url https://download.pytorch.org/whl/cu128"
    )
    yield Finding("accelerator", card, torch.cuda.is_available(), mend)


def _store() -> Iterator[Finding]:
    root = home()
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free / GIB
    roomy = free > LOW_DISK_GIB
    yield Finding(
        "store", f"{root}, {free:.1f} GiB free", roomy, "`compress gc`, or set COMPRESS_HOME to a larger disk"
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
