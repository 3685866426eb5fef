"""What is lost when a layer goes: remove the one whose loss hurts least, score the rest again, and so on.

The hurt is the KL divergence from the whole model's predictions, on calibration text. Each round runs, for every
layer that is left, only what follows it. Found the best set of layers in trials where block influence and scoring only
once did not (compare Kim et al., "Shortened LLaMA", arXiv 2402.02834, which scores once by perplexity).

A layer's score is the divergence at the moment it went, as a running maximum, so that layers removed later score
higher; ``TOKENS`` of the text are enough to rank: every round reads them again.
"""

from typing import TYPE_CHECKING

from compress.models.effort import num_layers
from compress.prune.interface import Unit
from compress.prune.planning import judging
from compress.records import ModelSpec, Work

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers",)

TOKENS = 8192


def passes(num_layers: int) -> float:
    """A round runs, for each of n layers left, what follows it: n(n-1)/2 layers; and what follows the one that went."""
    rounds = range(2, num_layers + 1)
    return 2 + sum(n * (n - 1) / 2 + n / 2 for n in rounds) / num_layers


def beside(spec: ModelSpec, tokens: int) -> Work:
    """Every layer left is judged in every round: n(n+1)/2 times all predictions, and once those of the whole model."""
    layers = num_layers(spec)
    return judging(spec, tokens, 1 + layers * (layers + 1) / 2)


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return ``[L]``; the last layer that is left scores infinity."""
    import torch

    from compress.prune.removal import LayerRemoval

    removal = LayerRemoval(calibration)
    scores = torch.full((calibration.layout.num_layers,), torch.inf, dtype=torch.float64)
    highest = 0.0
    for position in range(calibration.layout.num_layers - 1):
        layer, divergence = removal.remove_least()
        highest = max(highest, divergence) + position * 1e-12  # later ones rank higher among equals
        scores[layer] = highest
    return {"layers": scores}
