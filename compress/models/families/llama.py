"""Llama: RMSNorm, rotary grouped-query attention, gated MLP. The other decoders here differ by rows."""

from collections.abc import Mapping
from typing import Any

from compress.models.family import Tensor

TENSORS = {
    "model.embed_tokens.weight": Tensor(("vocab", "hidden")),
    "model.layers.{layer}.input_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.self_attn.q_proj.weight": Tensor(("query", "hidden")),
    "model.layers.{layer}.self_attn.k_proj.weight": Tensor(("key_value", "hidden")),
    "model.layers.{layer}.self_attn.v_proj.weight": Tensor(("key_value", "hidden")),
    "model.layers.{layer}.self_attn.o_proj.weight": Tensor(("hidden", "query")),
    "model.layers.{layer}.self_attn.q_proj.bias": Tensor(("query",), when="attention_bias"),
    "model.layers.{layer}.self_attn.k_proj.bias": Tensor(("key_value",), when="attention_bias"),
    "model.layers.{layer}.self_attn.v_proj.bias": Tensor(("key_value",), when="attention_bias"),
    "model.layers.{layer}.self_attn.o_proj.bias": Tensor(("hidden",), when="attention_bias"),
    "model.layers.{layer}.post_attention_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.mlp.gate_proj.weight": Tensor(("ffn", "hidden")),
    "model.layers.{layer}.mlp.up_proj.weight": Tensor(("ffn", "hidden")),
    "model.layers.{layer}.mlp.down_proj.weight": Tensor(("hidden", "ffn")),
    "model.layers.{layer}.mlp.gate_proj.bias": Tensor(("ffn",), when="mlp_bias"),
    "model.layers.{layer}.mlp.up_proj.bias": Tensor(("ffn",), when="mlp_bias"),
    "model.layers.{layer}.mlp.down_proj.bias": Tensor(("hidden",), when="mlp_bias"),
    "model.norm.weight": Tensor(("hidden",)),
    "lm_head.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}

HEADS_DIVIDE_HIDDEN = True

TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Every layer attends alike."""
    return None
