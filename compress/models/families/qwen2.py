"""Qwen2: Llama with biases on query, key and value, and windowed attention in upper layers if asked."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import mistral
from compress.models.family import Tensor

TENSORS = mistral.TENSORS | {
    "model.layers.{layer}.self_attn.q_proj.bias": Tensor(("query",)),
    "model.layers.{layer}.self_attn.k_proj.bias": Tensor(("key_value",)),
    "model.layers.{layer}.self_attn.v_proj.bias": Tensor(("key_value",)),
}

DEFAULTS = mistral.DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

TINY = mistral.TINY | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Layers from `max_window_layers` on use the sliding window, where one is used at all."""
    settings = {**DEFAULTS, **config}
    if not settings["use_sliding_window"] or settings["sliding_window"] is None:
        return None
    first = settings["max_window_layers"]
    return [
        "sliding_attention" if layer >= first else "full_attention"
        for layer in range(settings["num_hidden_layers"])
    ]
