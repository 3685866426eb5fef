"""Marks of packed tokens, one bit each: beside the ids in two or four bytes they hardly count.

A file holds a row of bits for every row of ids, each beginning a new byte: little work to write in a stream, and read
where it lies. `STARTS` marks the first token of every document, `LEARNED` what is to be learned.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from compress.errors import InputError

STARTS, LEARNED = "starts.bin", "learned.bin"

Array = np.ndarray[Any, Any]


class MarkWriter:
    """Writes marks as they come, whole rows at a time."""

    def __init__(self, path: Path, sequence_length: int) -> None:
        self._file = path.open("wb")
        self._length = sequence_length
        self._rest: list[Array] = []
        self._num_waiting = 0

    def __enter__(self) -> "MarkWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, marks: Array) -> None:
        """Append marks, bool ``[n]``."""
        self._rest.append(marks)
        self._num_waiting += len(marks)
        if self._num_waiting >= self._length:
            waiting = np.concatenate(self._rest)
            whole = len(waiting) // self._length * self._length
            rows = waiting[:whole].reshape(-1, self._length)
            self._file.write(np.packbits(rows, axis=1).tobytes())
            self._rest, self._num_waiting = [waiting[whole:]], len(waiting) - whole

    def keep(self, num_sequences: int) -> None:
        """Drop what comes after so many rows."""
        self._file.truncate(num_sequences * bytes_per_row(self._length))


class Marks:
    """Rows of marks, mapped."""

    def __init__(self, bits: Array, sequence_length: int) -> None:
        self._bits, self._length = bits, sequence_length

    @classmethod
    def open(cls, path: Path, num_sequences: int, sequence_length: int) -> "Marks":
        """Map a file. Raises `InputError` when it was cut short."""
        shape = (num_sequences, bytes_per_row(sequence_length))
        size = path.stat().st_size if path.exists() else 0
        if size != shape[0] * shape[1]:
            raise InputError(f"{path} has {size} bytes where {shape[0] * shape[1]} belong")
        return cls(np.memmap(path, dtype=np.uint8, mode="r", shape=shape), sequence_length)

    def rows(self, indices: list[int]) -> Array:
        """Return the marks of these rows, bool ``[n, T]``."""
        return np.unpackbits(self._bits[indices], axis=1, count=self._length).astype(bool)


def count_marks(path: Path) -> int:
    """Return how many tokens a file marks."""
    if not path.stat().st_size:
        return 0
    return int(np.bitwise_count(np.memmap(path, dtype=np.uint8, mode="r")).sum(dtype=np.int64))


def bytes_per_row(sequence_length: int) -> int:
    return -(-sequence_length // 8)


def positions(starts: Array) -> Array:
    """Return each token's place in its document inside its row, int64 ``[n, T]``, from the starts.

    A row that begins within a document counts from its own beginning: it sees nothing of what came before.
    """
    place = np.arange(starts.shape[1])
    return place - np.maximum.accumulate(np.where(starts, place, 0), axis=1)
