"""Minitron's recipe: activation scores, and a search over shapes that are near the budget.

Sources: Muralidharan et al. 2024 (arXiv:2407.14679, sections 2.2 and 2.3) and what NVIDIA's Model-Optimizer 0.41 does
(`mcore_minitron`), which is what a user would run: scores from one forward pass, query heads ranked inside their
KV group and as many removed from each (KV groups stay), layers by block influence, the same sizes in every layer,
the `TOP_K` largest shapes that fit the budget scored by the loss on calibration text, the best one taken. Weights
that stay are not changed.

Shapes: N samples, B of a batch, T positions, C channels; L, H, F, Q, G, E as in `cutting`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from .cutting import STEPS, TOLERANCE, Cut, Shape, cut_model, highest, sizes
from .scoring import mean_loss

BATCH = 32
TOP_K = 10
"""Model-Optimizer's default."""
LIMITS = ((0.40, 0.20), (0.55, 0.40), (0.75, 0.75))
"""How much of a width, and of the depth, may go: Model-Optimizer's defaults, then what a user must raise them to
where fewer shapes than wanted come within `NEAR` of the budget. Tried on `code`: at half the parameters the
defaults leave 3.65 nats/token, the next 2.99; at three quarters the defaults are best, 2.53 against 2.57."""
NEAR = 0.03


@dataclass(frozen=True)
class Scores:
    """hidden ``[H]``, ffn ``[L, F]``, heads ``[L, Q]``, layers ``[L]``; the higher, the more a unit matters."""

    hidden: Tensor
    ffn: Tensor
    heads: Tensor
    layers: Tensor


@torch.inference_mode()
def scores(model: PreTrainedModel, rows_NT: Tensor) -> Scores:
    """Return the four importances on calibration rows."""
    blocks = model.base_model.layers
    norms = [norm for block in blocks for norm in _norms_before(block)]
    energy: dict[nn.Module, Tensor] = {}
    turned: dict[nn.Module, Tensor] = {}

    def on_norm(module: nn.Module, inputs: tuple[Tensor, ...], output_BTC: Tensor) -> None:
        _add(energy, module, _channel_energy(output_BTC))

    def on_reader(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _add(energy, module, _channel_energy(inputs[0]))

    def on_block(module: nn.Module, inputs: tuple[Tensor, ...], output_BTC: Tensor) -> None:
        cosine_BT = cosine_similarity(inputs[0].float(), output_BTC.float(), dim=-1)
        _add(turned, module, (1 - cosine_BT.double()).sum())

    readers = [reader for block in blocks for reader in (block.mlp.down_proj, block.self_attn.o_proj)]
    with _hooks([(norms, on_norm), (readers, on_reader), (list(blocks), on_block)]):
        for ids_BT in rows_NT.split(BATCH):
            model.base_model(ids_BT, use_cache=False)
    heads = model.config.num_attention_heads
    return Scores(
        hidden=torch.stack([energy[norm].sqrt() for norm in norms]).sum(0),
        ffn=torch.stack([energy[block.mlp.down_proj].sqrt() for block in blocks]),
        heads=torch.stack([energy[b.self_attn.o_proj].sqrt().reshape(heads, -1).norm(dim=1) for b in blocks]),
        layers=torch.stack([turned[block] for block in blocks]) / rows_NT.numel(),
    )


def search(
    model: PreTrainedModel,
    found: Scores,
    budget: float,
    top_k: int,
    judged_NT: Tensor,
    *,
    steps: Mapping[str, int] = STEPS,
    loss: Callable[[PreTrainedModel, Tensor], float] = mean_loss,
) -> tuple[Cut, dict[str, Any]]:
    """Return the best of the candidates, judged by the loss on `judged_NT`, and what was tried.

    steps: what hidden sizes and neurons are multiples of. loss: nats a token; the default holds all logits at once.
    """
    config = model.config.to_dict()
    tried = [
        (loss(cut_model(model, cut), judged_NT), cut)
        for cut in (choose(found, shape, config) for shape in candidates(config, budget, top_k, steps))
    ]
    best = min(tried, key=lambda pair: pair[0])[1]
    return best, {"candidates": [{"loss": loss, **vars(cut.shape)} for loss, cut in tried]}


def candidates(
    config: dict[str, Any], budget: float, top_k: int, steps: Mapping[str, int] = STEPS
) -> list[Shape]:
    """Return the candidates within the narrowest limits that hold `top_k` near the budget, or within the widest."""
    wanted = budget * Shape.of(config).num_parameters(config)
    for width, depth in LIMITS:
        found = largest_within(config, budget, top_k, width, depth, steps)
        if len(found) == top_k and found[-1].num_parameters(config) >= wanted * (1 - NEAR):
            break
    return found


def largest_within(
    config: dict[str, Any],
    budget: float,
    top_k: int,
    width: float,
    depth: float,
    steps: Mapping[str, int] = STEPS,
) -> list[Shape]:
    """Return the `top_k` largest shapes within the budget, largest first."""
    wanted = budget * Shape.of(config).num_parameters(config)
    sized = [(shape.num_parameters(config), shape) for shape in _grid(config, width, depth, steps)]
    fitting = [(size, shape) for size, shape in sized if size <= wanted * TOLERANCE]
    return [shape for _, shape in sorted(fitting, key=lambda pair: pair[0], reverse=True)[:top_k]]


def choose(found: Scores, shape: Shape, config: dict[str, Any]) -> Cut:
    """Return the highest-scored units for a shape; from each KV group as many query heads."""
    groups, kept_per_group = shape.groups, shape.heads // shape.groups
    num_layers, heads = found.heads.shape
    in_group_LGq = highest(found.heads.reshape(num_layers, groups, -1), kept_per_group)
    first_G = torch.arange(groups) * (heads // groups)
    return Cut(
        layers=highest(found.layers, shape.layers).tolist(),
        hidden=highest(found.hidden, shape.hidden),
        ffn=highest(found.ffn, shape.ffn),
        heads=(in_group_LGq + first_G[:, None]).flatten(1),
        groups=torch.arange(groups).expand(num_layers, groups),
    )


def _norms_before(block: Any) -> tuple[nn.Module, nn.Module]:
    """Return the norms that attention and the FFN read; what Gemma's other two give is added to the hidden state."""
    before_ffn = getattr(block, "pre_feedforward_layernorm", None) or block.post_attention_layernorm
    return block.input_layernorm, before_ffn


def _grid(config: dict[str, Any], width: float, depth: float, steps: Mapping[str, int]) -> Iterator[Shape]:
    full = Shape.of(config)
    choices = (
        _upper(list(sizes("hidden", full.hidden, steps)), width),
        _upper(list(sizes("ffn", full.ffn, steps)), width),
        _upper(list(range(full.groups, full.heads + 1, full.groups)), width),
        _upper(list(range(1, full.layers + 1)), depth),
    )
    for hidden, ffn, heads, layers in product(*choices):
        if (shape := Shape(hidden, ffn, heads, full.groups, layers)).is_loadable(config):
            yield shape


def _upper(choices: list[int], may_go: float) -> list[int]:
    """Return the largest choices, the given share of them."""
    return choices[int((1 - may_go) * len(choices)) :]


def _channel_energy(activation_BTC: Tensor) -> Tensor:
    """Return ``Σ_samples (mean_positions |a|)²``: ``[C]``."""
    return activation_BTC.float().abs().mean(1).double().square().sum(0)


def _add(sums: dict[nn.Module, Tensor], module: nn.Module, value: Tensor) -> None:
    sums[module] = sums[module] + value if module in sums else value


@contextmanager
def _hooks(wanted: list[tuple[list[nn.Module], Any]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for modules, hook in wanted for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
