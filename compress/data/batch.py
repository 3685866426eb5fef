"""Rows of packed tokens as training reads them: which text a token belongs to, and whether it is to be learned.

Shapes: B rows, T positions, N tokens that are learned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids ``[B, T]`` int64 with their marks; without marks a row is one document and all of it is learned.

    A token is a target, to be predicted from those before it, unless it is the first of its row, begins a document or
    is not among the learned.
    """

    ids: Tensor
    positions: Tensor | None = None
    """Each token's place in its document ``[B, T]`` int64, 0 at its start; attention stays inside."""
    learned: Tensor | None = None
    """Whether a token is to be learned (an answer is, its question is not), bool ``[B, T]``."""
    rows: Tensor | None = None
    """Which rows of the packed data these are, int64 ``[B]``: what is stored about a row is found by its number."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> "Iterator[Batch]":
        """Yield the rows in groups of at most `size`."""
        for start in range(0, len(self), size):
            yield self._rows(slice(start, start + size))

    def rows_at(self, places: list[int]) -> "Batch":
        """Return the rows at these places."""
        return self._each(lambda tensor: tensor[places])

    @property
    def is_target(self) -> Tensor | None:
        """Whether each token after a row's first is a target, bool ``[B, T − 1]``; ``None`` where all are."""
        masks = []
        if self.learned is not None:
            masks.append(self.learned[:, 1:])
        if self.positions is not None:
            masks.append(self.positions[:, 1:] != 0)
        return torch.stack(masks).all(0) if masks else None

    def before_targets(self, values: Tensor) -> Tensor:
        """Return what stands before each target of values ``[B, T, …]``: ``[N, …]``."""
        return self._at_targets(values[:, :-1])

    @property
    def targets(self) -> Tensor:
        """The ids of all targets, row by row: ``[N]``."""
        return self._at_targets(self.ids[:, 1:])

    def _at_targets(self, values: Tensor) -> Tensor:
        mask_BT = self.is_target
        return values.flatten(0, 1) if mask_BT is None else values[mask_BT]

    def _rows(self, rows: slice) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = (self.ids, self.positions, self.learned, self.rows)
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]
