"""Batches that are padded, and where a token stands in its own sequence, whichever side the padding is on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def positions(mask_BS: Tensor) -> Tensor:
    """Return each real token's place in its own sequence ``[B, S]``; padding gets 0 or repeats the last."""
    return (mask_BS.long().cumsum(-1) - 1).clamp(min=0)


def padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Return ids padded with 0 and their mask, both ``[B, T]``."""
    width = max(len(row) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[index, where] = torch.tensor(row)
        mask_BT[index, where] = 1
    return ids_BT, mask_BT
