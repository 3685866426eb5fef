"""Work that survives a kill: one file, replaced as a whole or not at all."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from compress.train.background import Background, HostCopies

State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers and strings: what `torch.load` reads without running code."""

WORK_PER_WRITE = 20
"""A checkpoint that halted training for a second is followed by at least this many seconds of work."""


class Abandoned(Exception):
    """What was begun is given up, because the run is being stopped: nothing of it stays."""


class Keeps(Protocol):
    """What can be kept and become again what it was."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Clock:
    """When the next checkpoint is due, and how long the last one took."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due_at = time.monotonic() + seconds
        self.write_seconds: float | None = None
        """From the copy to the last byte; `None` before the first checkpoint."""

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due_at

    def written(self, started: float, halted: float | None = None) -> None:
        """Note a checkpoint that is whole now. `halted`: for how long training waited, where not all the time."""
        now = time.monotonic()
        self.write_seconds = took = now - started
        self._due_at = now + max(
            self._seconds,
            WORK_PER_WRITE * (took if halted is None else halted),
            0.0 if halted is None else took,
        )


class Checkpoints:
    """The checkpoint of the work in a folder, and when the next one is due."""

    def __init__(self, folder: Path, seconds: float, copies: HostCopies | None = None) -> None:
        """With `copies` it is written while training goes on, where host memory allows it."""
        self._path = folder / "checkpoint.pt"
        self._clock = Clock(seconds)
        self._copies = copies
        self._background = Background()
        self.lacking = 0
        """Bytes of host memory that were too few for writing beside training."""

    @property
    def exist(self) -> bool:
        return self._path.exists()

    @property
    def due(self) -> bool:
        return not self._background.busy and self._clock.due

    @property
    def write_seconds(self) -> float | None:
        """How long the last one took to write; `None` before the first."""
        return self._clock.write_seconds

    @property
    def written_at(self) -> int:
        """When it was written, in nanoseconds; 0 where there is none."""
        return self._path.stat().st_mtime_ns if self.exist else 0

    def drop(self) -> None:
        """Delete it: the work goes on from another."""
        self._path.unlink(missing_ok=True)

    def write(
        self, training: "Keeps", at_once: bool = False, then: Callable[[], None] = lambda: None
    ) -> None:
        """Replace the checkpoint by what is now. Whatever moment the process dies at, a whole one is there.

        It is whole when this returns, or, unless `at_once`, when `settle` does. Raises what the writing before raised.
        `then`: what to do when it is whole.
        """
        self.settle()
        started = time.monotonic()
        state = training.state()
        copied = None if at_once else self._copied(state)
        if copied is None:
            self._save(state)
            then()
            self._clock.written(started)
        else:
            halted = time.monotonic() - started
            self._background.start(partial(self._save_beside, copied, then, started, halted))

    def settle(self) -> None:
        """Return when none is being written. Raises what the writing raised."""
        self._background.settle()

    def check(self) -> None:
        """Raise what went wrong since, if anything did."""
        self._background.check()

    def restore(self, training: "Keeps") -> None:
        """Make the training what the checkpoint says."""
        self.settle()
        training.restore(self.read())

    def read(self) -> State:
        """Return what was written, its tensors on the CPU and read from the file as they are used."""
        state: State = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        return state

    def _copied(self, state: State) -> State | None:
        if self._copies is None:
            return None
        self.lacking = max(0, self._copies.lacking(state))
        return None if self.lacking else self._copies.of(state)

    def _save_beside(self, state: State, then: Callable[[], None], started: float, halted: float) -> None:
        self._save(state)
        then()
        self._clock.written(started, halted)

    def _save(self, state: State) -> None:
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        sync_folder(self._path.parent)


def sync_folder(folder: Path) -> None:
    """Have what a folder, or a file, holds reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
