"""How much a layer turns the hidden state: ``1 - cos(input, output)``, averaged over tokens.

Source: ShortGPT, arXiv 2403.03853, equation 1. A layer that returns what it was given scores 0.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from compress.models.layout import Layout
from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

UNITS: tuple[Unit, ...] = ("layers",)


def score(model: "PreTrainedModel", layout: Layout, batches: "Iterable[Tensor]") -> "dict[Unit, Tensor]":
    """Return the score of every layer ``[L]``."""
    import torch
    from torch.nn.functional import cosine_similarity

    from compress.prune.calibration import observing

    turned = dict.fromkeys(layout.layers, 0.0)
    num_tokens = 0

    def record(name: str, input_BTC: "Tensor", output_BTC: "Tensor") -> None:
        cosine_BT = cosine_similarity(input_BTC.float(), output_BTC.float(), dim=-1)
        turned[name] += float((1 - cosine_BT.double()).sum())

    with observing(model, layout.layers, record):
        for ids_BT in batches:
            model.get_decoder()(ids_BT, use_cache=False)
            num_tokens += ids_BT.numel()
    return {"layers": torch.tensor(list(turned.values()), dtype=torch.float64) / num_tokens}
