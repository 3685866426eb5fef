"""Ascending ids in few bits, all rows in equally many: the code of Elias and Fano, decoded without a loop.

The high bits of K ascending numbers are written in unary, as a one after as many zeros as they grew by; the low bits
as they are. That is at most K · (2 + log2(V / K)) bits, half a bit each above what any code of a fixed length needs.
Sources: Elias 1974 (doi 10.1145/321812.321820), Vigna 2013 (arXiv 1206.4300).

Shapes: N rows, K ids of each, all below V.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SortedIds:
    """The code of `num_ids` ascending ids below `vocabulary`; an id may follow itself."""

    num_ids: int
    vocabulary: int

    @property
    def num_bytes(self) -> int:
        """Bytes of a row."""
        return -(-(self._num_high_bits + self.num_ids * self._low) // 8)

    def encode(self, ids_NK: Array) -> Array:
        """Return rows of integers as rows of bytes: uint8 ``[N, num_bytes]``."""
        num, count = ids_NK.shape
        high_bits = np.zeros((num, self._num_high_bits), np.uint8)
        places_NK = (ids_NK >> self._low) + np.arange(count)
        np.put_along_axis(high_bits, places_NK, 1, axis=1)
        low_bits = (ids_NK[..., None] >> np.arange(self._low)) & 1
        bits = np.concatenate([high_bits, low_bits.reshape(num, count * self._low).astype(np.uint8)], axis=1)
        return np.packbits(bits, axis=1)

    def decode(self, rows: Array) -> Array:
        """Return what was encoded: int64 ``[N, num_ids]``."""
        num, count = len(rows), self.num_ids
        bits = np.unpackbits(rows, axis=1, count=self._num_high_bits + count * self._low)
        places_NK = np.nonzero(bits[:, : self._num_high_bits])[1].reshape(num, count)
        low_bits = bits[:, self._num_high_bits :].reshape(num * count, self._low)
        # A float product: numpy has no fast one of integers, and 24 bits are exact.
        low_NK = (low_bits.astype(np.float32) @ self._powers).astype(np.int64).reshape(num, count)
        return ((places_NK - np.arange(count)) << self._low) | low_NK

    @property
    def _low(self) -> int:
        """How many low bits of an id are written as they are."""
        return max(0, (self.vocabulary // self.num_ids).bit_length() - 1)

    @property
    def _num_high_bits(self) -> int:
        return self.num_ids + ((self.vocabulary - 1) >> self._low)

    @property
    def _powers(self) -> Array:
        return np.exp2(np.arange(self._low)).astype(np.float32)
