"""Rows of a batch that begin alike, with what they share apart, so that a runtime can read it once.

Shapes: G prefixes, P positions of a prefix, B rows, T positions of what follows, S = P + T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.backends.positions import padded


@dataclass(frozen=True)
class PrefixedBatch:
    """Rows that go on from shared prefixes.

    Prefixes are padded on the left and what follows on the right: a row's real tokens have no gap, so that a layer
    that looks back over so many columns sees as many tokens.
    """

    prefix_ids: Tensor
    prefix_mask: Tensor
    """Like the ids ``[G, P]``."""
    prefix_of_row: Tensor
    """Which prefix each row goes on from ``[B]``."""
    ids: Tensor
    """What follows in each row ``[B, T]``."""
    mask: Tensor

    def whole_mask(self) -> Tensor:
        """Return 1 at a row's real tokens, those of its prefix included ``[B, S]``."""
        return torch.cat([self.prefix_mask[self.prefix_of_row], self.mask], dim=1)

    @property
    def num_read(self) -> int:
        """Positions that are read, padding included."""
        return self.prefix_ids.numel() + self.ids.numel()


def prefixed_batch(rows: Sequence[tuple[int, ...]], num_shared: Sequence[int]) -> PrefixedBatch:
    """Return rows of token ids as a batch, of each so many tokens apart; equal prefixes are one."""
    prefixes = [row[:num] for row, num in zip(rows, num_shared, strict=True)]
    places = {prefix: place for place, prefix in enumerate(dict.fromkeys(prefixes))}
    return PrefixedBatch(
        *padded(list(places), left=True),
        torch.tensor([places[prefix] for prefix in prefixes]),
        *padded([row[num:] for row, num in zip(rows, num_shared, strict=True)], left=False),
    )
