"""How large a unit's weights are: the L2 norm of every weight that belongs to it. Needs no data.

The classic baseline (Han et al., arXiv 1506.02626), and a weak one for language models: it does not know
which units the text uses.
"""

from typing import TYPE_CHECKING

from compress.models.family import Axis
from compress.prune.interface import Unit
from compress.records import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers", "hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")

GROUP_AXES: tuple[Axis, ...] = ("query", "key_value", "heads_qkv")


def passes(spec: ModelSpec, layers_left: int = 1) -> float:
    """No text is read."""
    return 0.0


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the L2 norm of every unit's weights. Reads the checkpoint and no text."""
    import torch

    from compress.prune.parts import empty_scores, unit_sums

    model, layout = calibration.model, calibration.layout
    energies = empty_scores(layout)
    for name in layout.tensors:
        weight = model.stored[name]
        squares = weight.to(torch.promote_types(weight.dtype, torch.float32)).square()
        for unit, index, energy in unit_sums(layout, name, squares):
            energies[unit][index] += energy
    return {unit: torch.sqrt(energy) for unit, energy in energies.items()}
