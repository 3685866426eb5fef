"""How much a layer turns the hidden state: ``1 - cos(input, output)``, averaged over tokens.

Source: ShortGPT, arXiv 2403.03853, equation 1. A layer that returns what it was given scores 0.
"""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers",)


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the score of every layer ``[L]``."""
    import torch
    from torch.nn.functional import cosine_similarity

    turned = torch.zeros(calibration.layout.num_layers, dtype=torch.float64)
    for layer in calibration.layers():

        def around(before_BTH: "Tensor", after_BTH: "Tensor", number: int = layer.number) -> None:
            cosine_BT = cosine_similarity(before_BTH.float(), after_BTH.float(), dim=-1)
            turned[number] += (1 - cosine_BT.double()).sum().cpu()

        layer.run([], lambda *_: None, around)
    return {"layers": turned / calibration.num_tokens}
