"""Work that survives a kill: one file, replaced as a whole or not at all."""

import os
import time
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers and strings: what `torch.load` reads without running code."""

WORK_PER_WRITE = 20
"""A checkpoint that took a second to write is followed by at least this many seconds of work."""


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

    def write(self, state: State) -> None:
        """Replace the checkpoint. Whatever moment the process dies at, a whole one is there."""
        started = time.monotonic()
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        _sync_folder(self._path.parent)
        now = time.monotonic()
        self._due_at = now + max(self._seconds, WORK_PER_WRITE * (now - started))

    def read(self) -> State:
        """Return the checkpoint, its tensors on the CPU."""
        state: State = torch.load(self._path, map_location="cpu", weights_only=True)
        return state


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
