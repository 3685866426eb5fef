"""How much memory a process takes, as the kernel and the CUDA allocator count it.

Most of a process that serves a small model is Python and its libraries. What the model and its runtime take is the
growth over an empty process that has the same imports: `EmptyProcess` is one, forked before anything is opened.

`VmHWM` is a process's own peak resident set; `ru_maxrss` would be inherited from its parent. It includes
pages of files mapped into memory (the checkpoint itself), which the kernel can drop; `RssAnon` leaves those
out but has no recorded peak, so it is sampled.
"""

import importlib
import os
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
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


class EmptyProcess:
    """A copy of this process as it is now, which waits to import what this one will have imported, and nothing else."""

    def __init__(self) -> None:
        self._before = frozenset(sys.modules)
        self._asks, asked = os.pipe()
        answers, self._answer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: it only imports
            self._pid = os.fork()
        if self._pid == 0:
            os.close(asked), os.close(answers)  # type: ignore[func-returns-value]
            _import_and_answer(self._asks, self._answer)
        os.close(self._asks), os.close(self._answer)  # type: ignore[func-returns-value]
        self._to, self._from = asked, answers

    def anonymous_bytes(self, timeout_seconds: float = 60.0) -> int | None:
        """Return the memory, no file's, of the empty process once it has this one's imports, and end it.

        None where it did not come to that in time.
        """
        new = [name for name in list(sys.modules) if name not in self._before]
        answer = b""
        try:
            with suppress(OSError):  # where it died of an import there is no answer
                with os.fdopen(self._to, "w", encoding="utf-8") as to:
                    to.write("\n".join(new))
                if select.select([self._from], [], [], timeout_seconds)[0]:
                    answer = os.read(self._from, 64)
        finally:
            os.close(self._from)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        return int(answer) if answer else None


def _import_and_answer(asks: int, answer: int) -> None:
    """Import what is asked for, tell what the process then takes, and end."""
    try:
        with os.fdopen(asks, encoding="utf-8") as names:
            wanted = names.read().split("\n")
        with Path(os.devnull).open("w", encoding="utf-8") as nothing:
            sys.stdout = sys.stderr = nothing
            for name in wanted:
                with suppress(BaseException):  # what cannot be imported by its name is a part of what can
                    importlib.import_module(name)
        os.write(answer, str(anonymous_bytes()).encode())
    finally:
        os._exit(0)


def mapped_bytes(folder: Path) -> int:
    """Return how much of the files of a folder is mapped into this process and resident now: weights not copied."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            is_ours = str(folder.resolve()) + "/" in rest
        elif is_ours and name == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total


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
