"""Which run of layers changes the hidden state least as a whole: the angle between what enters and what leaves it.

Source: Gromov et al., arXiv 2403.17887, equation 5. The layers of one block go together, so which stay depends on
how many: the score is a matrix, and `keep` reads the block from it. The last layer always stays, as in that paper's
advice: it turns the state into what the output head reads.
"""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers",)

TOKENS = 16_384
"""The states before every layer are kept: 4 GB of an 8B model's for so many."""


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return ``[L, L]``: entry ``[i, n - 1]`` is the mean angle, as a share of π, over a block of n layers from i.

    Blocks that reach beyond the last layer have infinite angles. The states before every layer are kept, in files
    where the model is streamed.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    num, batches = calibration.layout.num_layers, calibration.batches
    rooms = [
        calibration.scratch.states(f"before-{i}", batches, calibration.layout.hidden, calibration.model.dtype)
        for i in range(num + 1)
    ]

    def note(room: "list[Tensor]") -> None:
        for kept, state in zip(room, calibration.states, strict=True):
            kept.copy_(state)

    for layer in calibration.layers():
        if layer.number == 0:
            note(rooms[0])
        layer.run([], lambda *_: None)
        note(rooms[layer.number + 1])
    angles = torch.full((num, num), torch.inf, dtype=torch.float64)
    for start in range(num):
        for stop in range(start + 1, num + 1):
            total = 0.0
            for a_BTH, b_BTH in zip(rooms[start], rooms[stop], strict=True):
                cosine_BT = cosine_similarity(a_BTH.double(), b_BTH.double(), dim=-1)
                total += float(cosine_BT.clamp(-1, 1).arccos().sum()) / torch.pi
            angles[start, stop - start - 1] = total / calibration.num_tokens
    return {"layers": angles}


def keep(scores: "Tensor", count: int) -> list[int]:
    """Return which layers stay when the least turning block of ``L - count`` goes."""
    num = len(scores)
    size = num - count
    if size == 0:
        return list(range(num))
    starts = scores[: max(1, num - size), size - 1]  # the last layer stays unless nothing else fits
    start = int(starts.argmin())
    return [layer for layer in range(num) if not start <= layer < start + size]
