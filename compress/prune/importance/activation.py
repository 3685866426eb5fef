"""How strongly a unit is used on calibration text (Minitron, arXiv 2407.14679, section 2.2).

With ``s_c = sqrt(Σ_samples (mean_positions |a_c|)²)`` for a channel c: an FFN neuron scores s of the
``down_proj`` input; a head, or KV group, the L2 norm of s over its channels of the ``o_proj`` input; a hidden channel
s of the norms' outputs, summed over all norms. An expert scores the sum of the router's weights for it, a neuron of an
expert the L2 norm of its weighted activations. Forward passes only; sums do not depend on the batching.
"""

from typing import TYPE_CHECKING, Any

from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the score of every hidden channel, neuron, KV group, head, expert and expert's neuron."""
    import torch

    from compress.prune.experts import expert_calls, experts_module

    layout = calibration.layout
    inputs = {*layout.readers("ffn"), *layout.readers("query")}
    energies: dict[str, Tensor] = {}
    usage_LE = torch.zeros(layout.num_layers, layout.num_experts, dtype=torch.float64)
    expert_LEF = torch.zeros(layout.num_layers, layout.num_experts, layout.expert_ffn, dtype=torch.float64)

    def add(name: str, activation_BTC: "Tensor") -> None:
        energy_C = channel_energy(activation_BTC)
        energies[name] = energies[name] + energy_C if name in energies else energy_C

    for layer in calibration.layers():
        experts = experts_module(layer)

        def record(
            name: str, given: tuple[Any, ...], output: "Tensor", layer: Any = layer, experts: Any = experts
        ) -> None:
            if experts is not None and name == experts[0]:
                for call in expert_calls(experts[1], given):
                    usage_LE[layer.number, call.expert] += call.weights.double().sum().cpu()
                    weighted_NF = call.neurons.double() * call.weights.double()[:, None]
                    expert_LEF[layer.number, call.expert] += weighted_NF.square().sum(0).cpu()
            else:
                full = layer.prefix + name
                add(full, given[0] if full in inputs else output)

        watched = layer.inside([*layout.norms, *inputs])
        layer.run([*watched, *([experts[0]] if experts else [])], record)
    outside = {layout.live(name): name for name in layout.norms if layout.layer_of(name) is None}
    calibration.tail(list(outside), lambda name, _, output: add(outside[name], output))

    scores: dict[Unit, Tensor] = {
        "hidden": torch.stack([energies[name].sqrt() for name in layout.norms]).sum(0).cpu()
    }
    if ffn := layout.readers("ffn"):
        scores["ffn"] = torch.stack([energies[name].sqrt() for name in ffn]).cpu()
    query_LC = torch.stack([energies[name] for name in layout.readers("query")]).cpu()
    grouped = query_LC.reshape(layout.num_layers, layout.num_kv_heads, layout.heads_per_group, -1).sum(-1)
    scores["kv_groups"] = grouped.sum(-1).sqrt()
    if "heads" in layout.width_axes:
        scores["heads"] = grouped.sqrt()
    if layout.num_experts:
        scores["experts"], scores["expert_ffn"] = usage_LE, expert_LEF.sqrt()
    return scores


def channel_energy(activation_BTC: "Tensor") -> "Tensor":
    """Return ``Σ_samples (mean_positions |a|)²`` in fp64: ``[C]``."""
    return activation_BTC.abs().float().mean(1).double().square().sum(0)
