"""Gemma 2: Gemma with a second norm behind attention and MLP, every other layer with a sliding window."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import gemma
from compress.models.family import Tensor

TENSORS = {name: row for name, row in gemma.TENSORS.items() if "{layer}" in name} | {
    "model.embed_tokens.weight": gemma.TENSORS["model.embed_tokens.weight"],
    "model.layers.{layer}.pre_feedforward_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.post_feedforward_layernorm.weight": Tensor(("hidden",)),
    "model.norm.weight": Tensor(("hidden",)),
    "lm_head.weight": gemma.TENSORS["lm_head.weight"],
}

DEFAULTS = gemma.DEFAULTS | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}

NORM_OFFSET = gemma.NORM_OFFSET
EMBEDDING_TIMES_SQRT_HIDDEN = gemma.EMBEDDING_TIMES_SQRT_HIDDEN
HEADS_DIVIDE_HIDDEN = True
RESIDUAL_ADDS = False

TINY = gemma.TINY | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": 8}


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """The first layer uses the sliding window, the second does not, and so on."""
    count = {**DEFAULTS, **config}["num_hidden_layers"]
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(count)]
