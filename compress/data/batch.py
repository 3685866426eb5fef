"""Rows of packed tokens as training reads them: which text a token belongs to, and whether it is to be learned.

Shapes: B rows, T positions, N tokens that are learned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where documents begin when rows are laid end to end."""

    starts: Tensor
    """int32 ``[documents + 1]``; the last is the number of all tokens."""
    longest: int
    """How many tokens the longest has."""


@dataclass(frozen=True)
class _Places:
    """What marks say, as places: sizes depend on it, so a GPU that is asked must first finish all it was given."""

    documents: Documents
    before_targets: Tensor | None
    """Where the token before each target is when rows are laid end to end, int64 ``[N]``; ``None`` where all after a
    row's first are targets."""

    def to(self, device: torch.device | str) -> "_Places":
        documents = replace(self.documents, starts=self.documents.starts.to(device))
        before = None if self.before_targets is None else self.before_targets.to(device)
        return _Places(documents, before)


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
    """Which rows of the packed data these are, int64 ``[B]``, in the processor's memory wherever the others are: what
    is stored about a row is found by its number."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device, with all that needs looking at its marks looked at before."""
        positions, learned = (
            None if mark is None else mark.to(device) for mark in (self.positions, self.learned)
        )
        return Batch(self.ids.to(device), positions, learned, self.rows)._with(self._places.to(device))

    def with_ids(self, ids: Tensor) -> "Batch":
        """Return the same rows in other ids ``[B, T]``."""
        return replace(self, ids=ids)._with(self._places)

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

    @property
    def documents(self) -> Documents:
        """Where documents begin: each row does so, and without positions nothing else."""
        return self._places.documents

    def before_targets(self, values: Tensor) -> Tensor:
        """Return what stands before each target of values ``[B, T, …]``: ``[N, …]``."""
        places_N = self._places.before_targets
        return values[:, :-1].flatten(0, 1) if places_N is None else values.flatten(0, 1)[places_N]

    @property
    def targets(self) -> Tensor:
        """The ids of all targets, row by row: ``[N]``."""
        places_N = self._places.before_targets
        return self.ids[:, 1:].flatten() if places_N is None else self.ids.flatten()[places_N + 1]

    @cached_property
    def _places(self) -> _Places:
        rows, length = self.ids.shape
        places = torch.arange(rows * length, device=self.ids.device, dtype=torch.int32).view(rows, length)
        begins = places[:, 0] if self.positions is None else places[_begins(self.positions)]
        starts = torch.cat([begins, begins.new_tensor([rows * length])])
        targets = self.is_target
        before = None if targets is None else places[:, :-1][targets].long()
        return _Places(Documents(starts, int(starts.diff().max())), before)

    def _with(self, places: _Places) -> "Batch":
        vars(self)["_places"] = places  # where `cached_property` keeps it
        return self

    def _rows(self, rows: slice) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = (self.ids, self.positions, self.learned, self.rows)
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]


def _begins(positions_BT: Tensor) -> Tensor:
    """Return where documents begin, bool ``[B, T]``: none reaches into the next row."""
    begins_BT = positions_BT == 0
    begins_BT[:, 0] = True
    return begins_BT
