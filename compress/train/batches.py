"""Which rows of the data a step reads: a pure function of the step, so resuming needs no position."""

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from compress.data.batch import Batch
from compress.data.tokens import order


class Rows(Protocol):
    """Packed data, as `compress.data.tokens.PackedTokens` offers it."""

    @property
    def num_sequences(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    def learning_batch(self, indices: list[int]) -> Batch: ...


class Batches:
    """The data in a seeded order, a new one every epoch."""

    def __init__(
        self, data: Rows, batch_sequences: int, seed: int, attend_across_documents: bool = False
    ) -> None:
        self._data, self._size, self._seed = data, batch_sequences, seed
        self._one_text_a_row = attend_across_documents
        self._order: tuple[int, Tensor] | None = None

    def at(self, step: int) -> Batch:
        """Return the batch of a step. It may span epochs."""
        total = self._data.num_sequences
        positions = range(step * self._size, (step + 1) * self._size)
        batch = self._data.learning_batch([int(self._epoch(i // total)[i % total]) for i in positions])
        return replace(batch, positions=None) if self._one_text_a_row else batch

    def _epoch(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, order(self._data.num_sequences, self._seed, epoch)
        return self._order[1]
