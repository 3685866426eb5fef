"""Phi 3: Llama with query, key and value in one matrix, and so gate and up."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import llama
from compress.models.family import Tensor

TENSORS = {
    "model.embed_tokens.weight": Tensor(("vocab", "hidden")),
    "model.layers.{layer}.input_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.self_attn.qkv_proj.weight": Tensor((("query", "key_value", "key_value"), "hidden")),
    "model.layers.{layer}.self_attn.o_proj.weight": Tensor(("hidden", "query")),
    "model.layers.{layer}.post_attention_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.mlp.gate_up_proj.weight": Tensor((("ffn", "ffn"), "hidden")),
    "model.layers.{layer}.mlp.down_proj.weight": Tensor(("hidden", "ffn")),
    "model.norm.weight": Tensor(("hidden",)),
    "lm_head.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

TINY = llama.TINY | {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

layer_types = llama.layer_types


def refusal(config: Mapping[str, Any]) -> str | None:
    """transformers compares LongRoPE's factors with hidden size and heads, whatever `head_dim` says."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    follows = config["hidden_size"] // config["num_attention_heads"]
    head_dim = config["head_dim"] or follows
    if rope.get("short_factor") and head_dim != follows:
        return (
            f"its LongRoPE factors need a hidden_size of {config['num_attention_heads']} heads times "
            f"{head_dim}; prune hidden and kv_groups together"
        )
    return None
