"""Token ids as a flat memory-mapped file of equal rows: what training and calibration read.

A folder holds ``tokens.bin`` (little-endian, ``[num_sequences, sequence_length]``), the marks that ``tokens.json``
names (`compress.data.marks`), ``chat_template.jinja`` where conversations were written with another than the
tokenizer's, and ``tokens.json``, which is written last. Rows are read where they lie, so a corpus far larger than
memory costs none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.data.batch import Batch
from compress.data.marks import LEARNED, STARTS, Marks, positions
from compress.errors import InputError

BIN, JSON, TEMPLATE = "tokens.bin", "tokens.json", "chat_template.jinja"

Ids = np.ndarray[tuple[int, int], np.dtype[Any]]


def id_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the narrowest stored integer that holds every id below `vocabulary`."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def given_template(folder: Path) -> str | None:
    """Return the chat template that a folder's conversations were written with in place of the tokenizer's, if any."""
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.exists() else None


class PackedTokens:
    """Rows of token ids, all of one length."""

    def __init__(
        self, ids: Ids, marks: Mapping[str, Marks] | None = None, learned_share: float = 1.0
    ) -> None:
        self._ids = ids
        self._marks = marks or {}
        self.learned_share = learned_share
        """The share of all tokens that is to be learned."""

    @classmethod
    def open(cls, folder: Path) -> "PackedTokens":
        """Map a `tokens` artifact. Raises `InputError` when it is none, or was cut short."""
        try:
            facts = json.loads((folder / JSON).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no packed tokens: {JSON} is missing") from error
        shape = (facts["num_sequences"], facts["sequence_length"])
        dtype = np.dtype(facts["dtype"])
        expected = shape[0] * shape[1] * dtype.itemsize
        if (size := (folder / BIN).stat().st_size) != expected:
            raise InputError(f"{folder / BIN} has {size} bytes where {JSON} promises {expected}")
        marks = {name: Marks.open(folder / name, *shape) for name in facts.get("marks", ())}
        tokens = shape[0] * shape[1]
        learned_share = facts.get("learned_tokens", tokens) / tokens
        return cls(np.memmap(folder / BIN, dtype=dtype, mode="r", shape=shape), marks, learned_share)

    @property
    def num_sequences(self) -> int:
        return self._ids.shape[0]

    @property
    def sequence_length(self) -> int:
        return self._ids.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows `start` up to, not including, `stop`: int64 ``[n, T]``."""
        return torch.from_numpy(self._ids[start:stop].astype(np.int64))

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the rows of these indices, in their order: int64 ``[n, T]``."""
        return torch.from_numpy(self._ids[list(indices)].astype(np.int64))

    def learning_batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows of these indices with their marks.

        It has positions only where a document begins within a row, and says what is learned only where something is
        not: without them attention and loss take their fastest ways.
        """
        numbers = list(indices)
        return Batch(
            self.batch(numbers),
            self._positions(numbers),
            self._learned(numbers),
            torch.tensor(numbers, dtype=torch.int64),
        )

    def _positions(self, indices: list[int]) -> Tensor | None:
        if STARTS not in self._marks:
            return None
        starts = self._marks[STARTS].rows(indices)
        return torch.from_numpy(positions(starts)) if starts[:, 1:].any() else None

    def _learned(self, indices: list[int]) -> Tensor | None:
        if LEARNED not in self._marks:
            return None
        learned = self._marks[LEARNED].rows(indices)
        return None if learned.all() else torch.from_numpy(learned)


def order(num_sequences: int, seed: int, epoch: int) -> Tensor:
    """Return the order of one epoch: int64 ``[num_sequences]``, the same for the same three numbers."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(num_sequences, generator=torch.Generator().manual_seed(int(mixed) >> 1))
