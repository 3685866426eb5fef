"""Streams of texts: the splits share the world and its wordings but no seed; none is worded like a task."""

from collections.abc import Iterator
from random import Random
from typing import Literal, get_args

from compress.data.world import agreement, facts, recall, sums

Split = Literal["train", "calibration", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

KINDS = {facts.ask: 0.42, agreement.ask: 0.14, sums.ask: 0.22, recall.ask: 0.22}
"""What a sentence is about, and how often."""


def documents(split: Split, seed: int) -> Iterator[str]:
    """Yield texts of 4 to 10 statements without end, the same for the same split and seed."""
    r = Random(f"demo world, {split}, {seed}")
    while True:
        kinds = r.choices(tuple(KINDS), tuple(KINDS.values()), k=r.randint(4, 10))
        yield " ".join(ask(r, reserved=False).statement for ask in kinds)
