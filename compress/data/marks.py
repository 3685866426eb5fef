"""Marks of packed tokens, one bit each: beside the ids in two or four bytes they hardly count.

A file holds a row of bits for every row of ids, each beginning a new byte: little work to write in a stream, and read
where it lies. `STARTS` marks the first token of every document, `LEARNED` what is to be learned.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress.data.row_file import RowFile, Saved
from compress.errors import InputError

STARTS, LEARNED = "starts.bin", "learned.bin"

Array = np.ndarray[Any, Any]


class MarkWriter(RowFile):
    """Writes marks as they come, whole rows at a time."""

    def __init__(self, path: Path, sequence_length: int, saved: Saved | None = None) -> None:
        super().__init__(path, sequence_length, packed_marks, bool, saved)

    def keep(self, num_sequences: int) -> None:
        """Drop what comes after so many rows."""
        super().keep(num_sequences * bytes_per_row(self._length))


def packed_marks(marks_nT: Array) -> bytes:
    """Return rows of marks, bool ``[n, T]``, as they are stored."""
    return np.packbits(marks_nT, axis=1).tobytes()


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
