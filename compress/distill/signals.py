"""A teacher's distributions on disk: targets of equal size in one memory-mapped file, found by row number.

A folder holds ``signals.bin`` (uint8 ``[num_tokens, bytes]``), ``rows.npy`` (int64 ``[num_rows, 2]``: a row's number in
the packed data, ascending, and how many targets it has) and ``signals.json``, which is written last.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.distill.coding import Coding
from compress.distill.sorted_ids import Array
from compress.distill.targets import Targets
from compress.errors import InputError
from compress.records import Record

BIN, ROWS, JSON = "signals.bin", "rows.npy", "signals.json"
COUNTS = "counts.bin"
"""While they are written: how many targets each row so far has."""


class About(Record):
    """What the targets are of."""

    vocabulary: int
    top_k: int
    samples: int
    temperature: float

    @property
    def coding(self) -> Coding:
        """How they are stored."""
        return Coding(self.vocabulary, self.top_k, self.samples)


class TeacherSignals:
    """Stored targets of the rows of a data set."""

    def __init__(self, about: About, stored: Array, rows: Array) -> None:
        """`stored`: uint8 ``[num_tokens, bytes]``; `rows`: int64 ``[num_rows, 2]``, numbers and counts."""
        self.about = about
        self._coding, self._stored, self._rows = about.coding, stored, rows[:, 0]
        self._ends = rows[:, 1].cumsum()
        self._starts = self._ends - rows[:, 1]

    @classmethod
    def open(cls, folder: Path) -> "TeacherSignals":
        """Map a `teacher_signals` artifact. Raises `InputError` when it is none, or was cut short."""
        try:
            about = About.model_validate_json((folder / JSON).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no teacher signals: {JSON} is missing") from error
        rows = np.load(folder / ROWS, allow_pickle=False)
        shape = (int(rows[:, 1].sum()), about.coding.num_bytes)
        if (size := (folder / BIN).stat().st_size) != shape[0] * shape[1]:
            raise InputError(f"{folder / BIN} has {size} bytes where {ROWS} promises {shape[0] * shape[1]}")
        return cls(about, np.memmap(folder / BIN, dtype=np.uint8, mode="r", shape=shape), rows)

    @property
    def rows(self) -> list[int]:
        """The numbers of the rows that are there, ascending."""
        numbers: list[int] = self._rows.tolist()
        return numbers

    def at(self, rows: Sequence[int]) -> Targets:
        """Return the targets of these rows, one row after the other, as `Batch.before_targets` orders them.

        Raises `InputError` for a row that is not there.
        """
        places = np.searchsorted(self._rows, rows).clip(max=len(self._rows) - 1)
        if (missing := self._rows[places] != np.asarray(rows)).any():
            raise InputError(
                f"the cached teacher signals have {len(self._rows)} rows of the data, and row "
                f"{np.asarray(rows)[missing][0]} is none of them: they were made for fewer tokens, or another seed"
            )
        spans = [self._stored[self._starts[place] : self._ends[place]] for place in places]
        return self._coding.decode(np.concatenate(spans))


class SignalsWriter:
    """Signals being written, block after block of rows, in a folder that outlives the process.

    A block counts once its rows' counts are on disk, after its targets: a process that dies leaves whole blocks, and
    whatever else it wrote is cut off.
    """

    def __init__(self, folder: Path, about: About, rows: Sequence[int], block_rows: int) -> None:
        self._folder, self._about, self._rows = folder, about, rows
        counts = _whole_numbers(folder / COUNTS)
        done = len(counts) if len(counts) == len(rows) else len(counts) // block_rows * block_rows
        self.counts: list[int] = counts[:done].tolist()
        _cut(folder / COUNTS, done * 8)
        _cut(folder / BIN, sum(self.counts) * about.coding.num_bytes)

    @property
    def rows_done(self) -> int:
        """How many of the rows are on disk."""
        return len(self.counts)

    def append(self, targets: Targets, counts: Iterable[int]) -> None:
        """Add the next block of rows: their targets, and how many each has."""
        counts = list(counts)
        assert sum(counts) == len(targets)
        _append(self._folder / BIN, self._about.coding.encode(targets))
        _append(self._folder / COUNTS, np.array(counts, dtype="<i8"))
        self.counts += counts

    def finish(self, folder: Path) -> None:
        """Put the finished signals into a folder of the same file system."""
        assert self.rows_done == len(self._rows)
        os.link(self._folder / BIN, folder / BIN)
        rows = np.stack([np.array(self._rows, "<i8"), np.array(self.counts, "<i8")], axis=1)
        np.save(folder / ROWS, rows, allow_pickle=False)
        (folder / JSON).write_text(json.dumps(self._about.model_dump(), indent=2) + "\n", encoding="utf-8")


def _whole_numbers(path: Path) -> Array:
    content = path.read_bytes() if path.exists() else b""
    return np.frombuffer(content[: len(content) // 8 * 8], dtype="<i8")


def _cut(path: Path, size: int) -> None:
    with path.open("ab") as file:
        assert file.tell() >= size, f"{path} is shorter than what was recorded of it"
        file.truncate(size)


def _append(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("ab") as file:
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())
