"""Inside a mixture of experts: what each expert is given, computes and adds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.calibration import LayerPass


@dataclass(frozen=True)
class ExpertCall:
    """The n tokens routed to one expert: neuron activations ``[n, F]`` and the router's weights ``[n]``."""

    expert: int
    neurons: Tensor
    weights: Tensor


def experts_module(layer: LayerPass) -> tuple[str, nn.Module] | None:
    """Return the module that holds a layer's experts and its name below the layer, ``None`` without experts."""
    found = [(name, module) for name, module in layer.module.named_modules() if name.endswith("experts")]
    return found[0] if found else None


def expert_calls(experts: nn.Module, inputs: tuple[Any, ...]) -> Iterator[ExpertCall]:
    """Yield, from what the experts' module was called with, every expert's share of the tokens.

    The module is called with the hidden states ``[N, H]``, the chosen experts ``[N, k]`` and their weights ``[N, k]``;
    an expert computes ``down(act(gate(x)) * up(x))`` from its slices of ``gate_up_proj`` and ``down_proj``.
    """
    hidden_NH, chosen_NK, weights_NK = inputs[:3]
    hidden_NH = hidden_NH.reshape(-1, hidden_NH.shape[-1])
    activation: Any = experts.act_fn
    gate_up_EGH: Tensor = experts.gate_up_proj  # type: ignore[assignment]
    for expert in range(len(gate_up_EGH)):
        token, place = torch.where(chosen_NK == expert)
        gate_NF, up_NF = (hidden_NH[token] @ gate_up_EGH[expert].T).chunk(2, dim=-1)
        yield ExpertCall(expert, activation(gate_NF) * up_NF, weights_NK[token, place])
