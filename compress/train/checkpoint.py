"""Work that survives a kill: one file, replaced as a whole or not at all."""

import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch

State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers and strings: what `torch.load` reads without running code."""

WORK_PER_WRITE = 20
"""A checkpoint that took a second to write is followed by at least this many seconds of work."""


class Keeps(Protocol):
    """What can be kept and become again what it was."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Checkpoints:
    """The checkpoint of the work in a folder, and when the next one is due."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._path = folder / "checkpoint.pt"
        self._seconds = seconds
        self._due_at = time.monotonic()

    @property
    def exist(self) -> bool:
        return self._path.exists()

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due_at

    @property
    def written_at(self) -> int:
        """When it was written, in nanoseconds; 0 where there is none."""
        return self._path.stat().st_mtime_ns if self.exist else 0

    def drop(self) -> None:
        """Delete it: the work goes on from another."""
        self._path.unlink(missing_ok=True)

    def write(self, training: "Keeps") -> None:
        """Replace the checkpoint by what is now. Whatever moment the process dies at, a whole one is there."""
        started = time.monotonic()
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as stream:
            torch.save(training.state(), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        sync_folder(self._path.parent)
        now = time.monotonic()
        self._due_at = now + max(self._seconds, WORK_PER_WRITE * (now - started))

    def restore(self, training: "Keeps") -> None:
        """Make the training what the checkpoint says."""
        training.restore(self.read())

    def read(self) -> State:
        """Return what was written, its tensors on the CPU and read from the file as they are used."""
        state: State = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        return state


def sync_folder(folder: Path) -> None:
    """Have what a folder, or a file, holds reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
