"""How much memory a process takes, as the kernel and the CUDA allocator count it.

`VmHWM` is a process's own peak resident set; `ru_maxrss` would be inherited from its parent. It includes
pages of files mapped into memory (the checkpoint itself), which the kernel can drop; `RssAnon` leaves those
out but has no recorded peak, so it is sampled.
"""

import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

from compress.records import Artifact

HEADROOM = 1.2
"""Memory beside the weights: activations, caches, the allocator's slack."""


def peak_resident_bytes() -> int:
    """Return the largest resident set this process has had, shared libraries and mapped files included."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Return the resident set of this process now."""
    return _status("VmRSS")


def anonymous_bytes() -> int:
    """Return the resident memory of this process that no file backs, now."""
    return _status("RssAnon")


class AnonymousPeak:
    """Samples `anonymous_bytes` from a thread while a block runs; the largest is in `bytes`."""

    def __init__(self, interval_seconds: float = 0.005) -> None:
        self.bytes = 0
        self._interval = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(self._interval)
            self.bytes = max(self.bytes, anonymous_bytes())


def fit_together(artifacts: list[Artifact], device: str) -> bool:
    """Return whether all of them can be open at once on ``cpu`` or a CUDA device."""
    needed = HEADROOM * sum(_opened_bytes(artifact) for artifact in artifacts)
    available = torch.cuda.mem_get_info(device)[0] if device != "cpu" else psutil.virtual_memory().available
    return needed < available


def _opened_bytes(artifact: Artifact) -> int:
    """Return about what an open model takes: its files, or 16 bits a weight where integers are expanded."""
    stored = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    return max(stored, 2 * artifact.spec.num_parameters if artifact.spec else 0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")
