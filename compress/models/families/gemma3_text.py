"""Gemma 3 (text): Gemma 2 with norms on every query and key head, and a full-attention layer every sixth."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import gemma2
from compress.models.family import Tensor

TENSORS = gemma2.TENSORS | {
    "model.layers.{layer}.self_attn.q_norm.weight": Tensor(("head_dim",)),
    "model.layers.{layer}.self_attn.k_norm.weight": Tensor(("head_dim",)),
}

DEFAULTS = gemma2.DEFAULTS | {"vocab_size": 262208, "sliding_window_pattern": 6}

NORM_OFFSET = gemma2.NORM_OFFSET
EMBEDDING_TIMES_SQRT_HIDDEN = gemma2.EMBEDDING_TIMES_SQRT_HIDDEN
HEADS_DIVIDE_HIDDEN = gemma2.HEADS_DIVIDE_HIDDEN
RESIDUAL_ADDS = gemma2.RESIDUAL_ADDS

TINY = gemma2.TINY | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "sliding_window_pattern": 3,
}


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Every layer but each `sliding_window_pattern`-th uses the sliding window."""
    settings = {**DEFAULTS, **config}
    period = settings["sliding_window_pattern"]
    return [
        "sliding_attention" if (layer + 1) % period else "full_attention"
        for layer in range(settings["num_hidden_layers"])
    ]
