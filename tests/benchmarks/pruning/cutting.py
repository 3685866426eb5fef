"""Cutting a Llama-like model down to the units that stay, in memory: what every rival's choice is written by.

Deliberately not `compress.prune`: a rival's result must not change with our code. Nothing is rescaled, as nothing
is in NVIDIA's Model-Optimizer, but in Gemmas (`gemma`).

Shapes: L layers, H hidden channels, F neurons, Q query heads, G KV groups, E head dimension; primes are what stays.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from compress.models.checkpoint import quiet, save_model
from compress.models.layout import layout

from . import gemma

TOLERANCE = 1.01
"""What a budget may be exceeded by: the tolerance of `prune.width`, granted to everyone."""
STEPS = {"hidden": 16, "ffn": 32}
"""What sizes are multiples of. Model-Optimizer's 256 and 512 are 1/16 of a Llama-3.1-8B's hidden size and 1/28 of
its FFN; these are 1/16 and 1/24 of ours."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that pruning may change."""

    hidden: int
    ffn: int
    heads: int
    groups: int
    layers: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """Return the shape of a Hugging Face configuration."""
        return cls(*(config[key] for key in KEYS))

    def config(self, parent: dict[str, Any]) -> dict[str, Any]:
        """Return the parent's configuration with these sizes."""
        sizes = dict(zip(KEYS, (self.hidden, self.ffn, self.heads, self.groups, self.layers), strict=True))
        config = {**parent, **sizes}
        if config.get("layer_types"):
            config["layer_types"] = config["layer_types"][: self.layers]
        return config

    def num_parameters(self, parent: dict[str, Any]) -> int:
        return layout(self.config(parent)).num_parameters

    def is_loadable(self, parent: dict[str, Any]) -> bool:
        """Whether transformers accepts it: Llama's and Gemma's heads must divide their hidden size."""
        divides = parent["model_type"] == "llama" or gemma.is_gemma(parent)
        return not divides or self.hidden % self.heads == 0


KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
)

NORMS = ("input_layernorm", "post_attention_layernorm", *gemma.MORE_NORMS)
"""Over the hidden channels, in every layer."""


@dataclass(frozen=True)
class Cut:
    """Ascending indices of what stays, by the parent's numbering: hidden ``[H']``, the others ``[L, n']``."""

    layers: list[int]
    hidden: Tensor
    ffn: Tensor
    heads: Tensor
    groups: Tensor

    @property
    def shape(self) -> Shape:
        sizes = (len(self.hidden), self.ffn.shape[1], self.heads.shape[1], self.groups.shape[1])
        return Shape(*sizes, len(self.layers))

    def config(self, parent: dict[str, Any]) -> dict[str, Any]:
        """Return the parent's configuration for what stays: every layer keeps its kind of attention."""
        config = self.shape.config(parent)
        if parent.get("layer_types"):
            config["layer_types"] = [parent["layer_types"][layer] for layer in self.layers]
        return gemma.adjusted(config, parent["hidden_size"]) if gemma.is_gemma(parent) else config


def whole(config: dict[str, Any]) -> Cut:
    """Return the cut that removes nothing."""
    shape = Shape.of(config)

    def every(count: int) -> Tensor:
        return torch.arange(count).expand(shape.layers, count)

    return Cut(
        list(range(shape.layers)),
        torch.arange(shape.hidden),
        every(shape.ffn),
        every(shape.heads),
        every(shape.groups),
    )


def highest(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the `count` highest scores along the last axis."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def heads_of(groups_LG: Tensor, heads_per_group: int) -> Tensor:
    """Return the query heads of whole KV groups: ``[L, G' · heads_per_group]``."""
    heads = groups_LG[..., None] * heads_per_group + torch.arange(heads_per_group)
    return heads.flatten(1)


def even_shape(config: dict[str, Any], budget: float) -> Shape:
    """Return the shape near the budget that keeps about the same share of hidden size, FFN and KV groups.

    Nearness counts ten times as much as evenness. All layers stay.
    """
    full = Shape.of(config)
    wanted = budget * full.num_parameters(config)
    per_group = full.heads // full.groups

    def cost(shape: Shape) -> float:
        shares = (shape.hidden / full.hidden, shape.ffn / full.ffn, shape.groups / full.groups)
        return max(shares) - min(shares) + 10 * abs(shape.num_parameters(config) / wanted - 1)

    grid = (
        Shape(hidden, ffn, groups * per_group, groups, full.layers)
        for hidden, ffn, groups in product(
            sizes("hidden", full.hidden), sizes("ffn", full.ffn), range(1, full.groups + 1)
        )
    )
    fitting = (s for s in grid if s.is_loadable(config) and s.num_parameters(config) <= wanted * TOLERANCE)
    return min(fitting, key=cost)


def sizes(axis: str, full: int, steps: Mapping[str, int] = STEPS) -> range:
    """Return the sizes an axis may take."""
    return range(steps[axis], full + 1, steps[axis])


def cut_model(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """Return a new, smaller model of what stays."""
    parent = model.config.to_dict()
    config = cut.config(parent)
    settings = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    with quiet():
        smaller: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**settings), dtype=torch.float32
        )
    state = dict(_cut_state(model.state_dict(), cut, config["head_dim"]))
    if gemma.is_gemma(parent):
        gemma.rescale(state, config, parent["hidden_size"])
    smaller.load_state_dict(state, strict=True)
    return smaller.eval()


def write(model: PreTrainedModel, cut: Cut, like: Path, folder: Path) -> dict[str, Any]:
    """Write the cut model with the tokenizer of `like`; return its shape as facts."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(cut_model(model, cut), folder, like=like)
    return {"shape": vars(cut.shape), "kept_layers": cut.layers}


def _cut_state(state: dict[str, Tensor], cut: Cut, head_dim: int) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that stays under its new name."""
    new_number = {old: new for new, old in enumerate(cut.layers)}
    for name, tensor in state.items():
        parts = name.split(".")
        if "layers" not in parts:
            # The final norm is a vector over hidden, embedding and head are [vocabulary, hidden].
            yield name, tensor.index_select(tensor.ndim - 1, cut.hidden)
            continue
        place = parts.index("layers") + 1
        layer, module = int(parts[place]), parts[-2]
        if layer in new_number:
            parts[place] = str(new_number[layer])
            rows, columns = _kept(module, cut, layer, head_dim)
            if rows is not None:
                tensor = tensor.index_select(0, rows)
            if columns is not None:
                tensor = tensor.index_select(1, columns)
            yield ".".join(parts), tensor


def _kept(module: str, cut: Cut, layer: int, head_dim: int) -> tuple[Tensor | None, Tensor | None]:
    """Return which rows and columns of a module's weight stay; ``None`` for all, or where there is no axis."""

    def channels(heads_N: Tensor) -> Tensor:
        return (heads_N[:, None] * head_dim + torch.arange(head_dim)).flatten()

    match module:
        case "q_proj":
            return channels(cut.heads[layer]), cut.hidden
        case "k_proj" | "v_proj":
            return channels(cut.groups[layer]), cut.hidden
        case "o_proj":
            return cut.hidden, channels(cut.heads[layer])
        case "gate_proj" | "up_proj":
            return cut.ffn[layer], cut.hidden
        case "down_proj":
            return cut.hidden, cut.ffn[layer]
        case _ if module in NORMS:
            return cut.hidden, None
        case "q_norm" | "k_norm":
            return None, None
    raise AssertionError(f"unknown module {module}")
