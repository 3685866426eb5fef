"""How strongly a unit is used on calibration text (Minitron, arXiv 2407.14679, section 2.2).

With ``s_c = sqrt(Σ_samples (mean_positions |a_c|)²)`` for a channel c: an FFN neuron scores s of the
``down_proj`` input; a KV group the L2 norm of s over its channels of the ``o_proj`` input; a hidden channel s
of the norms' outputs, summed over all norms. Forward passes only; the sum over samples does not depend on the
batching.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from compress.models.layout import Layout
from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

UNITS: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups")


def score(model: "PreTrainedModel", layout: Layout, batches: "Iterable[Tensor]") -> "dict[Unit, Tensor]":
    """Return the score of every hidden channel ``[H]``, neuron ``[L, F]`` and KV group ``[L, G]``."""
    import torch

    from compress.prune.calibration import observing

    norms, ffn, attention = layout.norms, layout.readers("ffn"), layout.readers("query")
    energies: dict[str, Tensor] = {}

    def record(name: str, input_BTC: "Tensor", output_BTC: "Tensor") -> None:
        energy_C = channel_energy(output_BTC if name in norms else input_BTC)
        energies[name] = energies[name] + energy_C if name in energies else energy_C

    with observing(model, [*norms, *ffn, *attention], record):
        for ids_BT in batches:
            model.get_decoder()(ids_BT, use_cache=False)
    query_LC = torch.stack([energies[name] for name in attention])
    return {
        "hidden": torch.stack([energies[name].sqrt() for name in norms]).sum(0),
        "ffn": torch.stack([energies[name].sqrt() for name in ffn]),
        "kv_groups": query_LC.reshape(layout.num_layers, layout.num_kv_heads, -1).sum(-1).sqrt(),
    }


def channel_energy(activation_BTC: "Tensor") -> "Tensor":
    """Return ``Σ_samples (mean_positions |a|)²`` in fp64: ``[C]``."""
    return activation_BTC.abs().float().mean(1).double().square().sum(0)
