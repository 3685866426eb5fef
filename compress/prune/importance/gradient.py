"""How the loss changes when a unit goes, to first order: ``|Σ w · ∂L/∂w|`` over all weights that belong to it.

Source: Molchanov et al., arXiv 1906.10771, equation 8, the absolute value in place of the square; for language models
LLM-Pruner, arXiv 2305.11627. L is the next-token cross-entropy. A unit the loss is flat along scores low however
active it is. It needs a backward pass, and a text the model is to do well on.

The states before every layer are kept, in files where the model is streamed.
"""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit
from compress.records import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers", "hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")

NEEDS_GRADIENT = True

TOKENS = 16_384
"""At most so many tokens are read: 4 GB of states of an 8B model."""


def passes(spec: ModelSpec, layers_left: int = 1) -> float:
    """Every layer runs forward, once more, and backward, which is two."""
    return 4.0


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the first-order change of the loss, in nats, for every unit."""
    import torch

    from compress.prune.backward import LossGradient
    from compress.prune.parts import empty_scores, unit_sums

    changes = empty_scores(calibration.layout)

    def receive(name: str, weight: "Tensor", gradient: "Tensor") -> None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        for unit, index, change in unit_sums(calibration.layout, name, weight.to(wide) * gradient):
            changes[unit][index] += change.cpu()

    LossGradient(calibration, receive).run()
    return {unit: change.abs() for unit, change in changes.items()}
