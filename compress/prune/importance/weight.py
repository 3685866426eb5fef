"""How large a unit's weights are: the L2 norm of every weight that belongs to it. Needs no data.

The classic baseline (Han et al., arXiv 1506.02626), and a weak one for language models: it does not know
which units the text uses.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from compress.models.layout import Axis, Layout, WidthAxis
from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

UNITS: tuple[WidthAxis, ...] = ("hidden", "ffn", "kv_groups")

UNIT_OF: dict[Axis, WidthAxis] = {
    "hidden": "hidden",
    "ffn": "ffn",
    "query": "kv_groups",
    "key_value": "kv_groups",
}


def score(model: "PreTrainedModel", layout: Layout, batches: "Iterable[Tensor]") -> "dict[Unit, Tensor]":
    """Return the score of every hidden channel ``[H]``, neuron ``[L, F]`` and KV group ``[L, G]``."""
    import torch

    energies: dict[Unit, Tensor] = {
        unit: torch.zeros(layout.num_layers, layout.length(unit), dtype=torch.float64) for unit in UNITS
    }
    for name, axes in layout.tensors.items():
        weight = model.get_parameter(name)
        layer = layout.layer_of(name) or 0
        for dim, axis in enumerate(axes):
            if axis in UNIT_OF:
                unit = UNIT_OF[axis]
                norm = weight.movedim(dim, 0).reshape(layout.length(unit), -1).float().norm(dim=1)
                energies[unit][layer] += norm.double().square().cpu()
    return {
        "hidden": energies["hidden"].sum(0).sqrt(),
        "ffn": energies["ffn"].sqrt(),
        "kv_groups": energies["kv_groups"].sqrt(),
    }
