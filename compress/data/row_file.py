"""A file of equal rows, written as their elements come; what is there survives a kill, and is gone on with."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from compress.records import Record

READ_BYTES = 2**22

Array = np.ndarray[Any, Any]


class Saved(Record):
    """A file's part that is on disk for good, and what of a row came after it."""

    num_bytes: int = 0
    checksum: int = 0
    """CRC-32 of these bytes."""
    rest: tuple[int, ...] = ()
    """Elements that fill no row yet."""

    def is_in(self, path: Path) -> bool:
        """Return whether a file begins with these bytes; all of them are read."""
        if not path.exists() or path.stat().st_size < self.num_bytes:
            return False
        checksum, left = 0, self.num_bytes
        with path.open("rb") as file:
            while left and (read := file.read(min(left, READ_BYTES))):
                checksum, left = zlib.crc32(read, checksum), left - len(read)
        return checksum == self.checksum


class RowFile:
    """Writes elements of one dtype, whole rows at a time."""

    def __init__(
        self,
        path: Path,
        sequence_length: int,
        pack: Callable[[Array], bytes],
        dtype: Any,
        saved: Saved | None = None,
    ) -> None:
        """`pack` returns rows ``[n, T]`` as they are stored. `saved`: what to go on from; without it from nothing."""
        saved = saved or Saved()
        self._length, self._pack = sequence_length, pack
        self._file = path.open("r+b" if saved.num_bytes else "wb")
        self._file.truncate(saved.num_bytes)
        self._file.seek(saved.num_bytes)
        self._rest = [np.array(saved.rest, dtype=dtype)]
        self._num_waiting = len(saved.rest)
        self._num_bytes, self._checksum = saved.num_bytes, saved.checksum

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, elements: Array) -> None:
        """Append elements ``[n]``."""
        self._rest.append(elements)
        self._num_waiting += len(elements)
        if self._num_waiting >= self._length:
            waiting = np.concatenate(self._rest)
            whole = len(waiting) // self._length * self._length
            packed = self._pack(waiting[:whole].reshape(-1, self._length))
            self._file.write(packed)
            self._num_bytes += len(packed)
            self._checksum = zlib.crc32(packed, self._checksum)
            self._rest, self._num_waiting = [waiting[whole:]], len(waiting) - whole

    def save(self) -> Saved:
        """Put on disk what was written; return what a later process needs to go on."""
        self._file.flush()
        os.fsync(self._file.fileno())
        rest = tuple(np.concatenate(self._rest).tolist())
        return Saved(num_bytes=self._num_bytes, checksum=self._checksum, rest=rest)

    def keep(self, num_bytes: int) -> None:
        """Drop what comes after so many bytes."""
        self._file.truncate(num_bytes)
