"""What is lost when a layer goes: remove the one whose loss hurts least, score the rest again, and so on.

The hurt is the KL divergence from the whole model's predictions, on calibration text. A round tries the layers
that may be the next to go, and runs only what follows each; of a large vocabulary, they are screened on a part of the
text and over the likeliest ids first. No more rounds are made than layers are to go, where that is known. It found the
best set of layers in trials where block influence and scoring only once did not (compare Kim et al.,
"Shortened LLaMA", arXiv 2402.02834, which scores once by perplexity).

A layer's score is the divergence at the moment it went, as a running maximum, so that layers removed later score
higher; ``TOKENS`` of the text are enough to rank: every round reads them again.
"""

from typing import TYPE_CHECKING

from compress.models.effort import num_layers
from compress.models.layout import layout
from compress.prune import screening
from compress.prune.interface import Unit
from compress.prune.planning import judging
from compress.records import ModelSpec, Work

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers",)
STOPS_EARLY = True

TOKENS = 8192


def passes(spec: ModelSpec, layers_left: int = 1) -> float:
    """Each round runs, for every layer left or for those a screening leaves, what follows it."""
    rounds = screening.rounds(num_layers(spec), layers_left)
    return screening.passes(rounds, screening.is_screened(layout(spec.config).vocab))


def beside(spec: ModelSpec, tokens: int, layers_left: int = 1) -> Work:
    """Predictions over the whole vocabulary: of every layer left in every round, or of the few that a screening leaves.

    And once those of the whole model.
    """
    vocabulary = layout(spec.config).vocab
    rounds = screening.rounds(num_layers(spec), layers_left)
    times = 1 + screening.whole_judgments(rounds, screening.is_screened(vocabulary))
    return judging(spec, tokens / screening.judged_every(vocabulary, tokens), times)


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return ``[L]``; the layers that are left at the end score infinity."""
    import torch

    from compress.prune.removal import LayerRemoval

    removal = LayerRemoval(calibration)
    scores = torch.full((calibration.layout.num_layers,), torch.inf, dtype=torch.float64)
    highest = 0.0
    for position in range(calibration.layout.num_layers - calibration.layers_left):
        layer, divergence = removal.remove_least()
        highest = max(highest, divergence) + position * 1e-12  # later ones rank higher among equals
        scores[layer] = highest
    return {"layers": scores}
