"""Phi 1 to 2: LayerNorm, attention and MLP side by side, biases everywhere, also on the output head."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import llama
from compress.models.family import Tensor

TENSORS = {
    "model.embed_tokens.weight": Tensor(("vocab", "hidden")),
    "model.layers.{layer}.input_layernorm.weight": Tensor(("hidden",)),
    "model.layers.{layer}.input_layernorm.bias": Tensor(("hidden",)),
    "model.layers.{layer}.self_attn.q_proj.weight": Tensor(("query", "hidden")),
    "model.layers.{layer}.self_attn.q_proj.bias": Tensor(("query",)),
    "model.layers.{layer}.self_attn.k_proj.weight": Tensor(("key_value", "hidden")),
    "model.layers.{layer}.self_attn.k_proj.bias": Tensor(("key_value",)),
    "model.layers.{layer}.self_attn.v_proj.weight": Tensor(("key_value", "hidden")),
    "model.layers.{layer}.self_attn.v_proj.bias": Tensor(("key_value",)),
    "model.layers.{layer}.self_attn.dense.weight": Tensor(("hidden", "query")),
    "model.layers.{layer}.self_attn.dense.bias": Tensor(("hidden",)),
    "model.layers.{layer}.self_attn.q_layernorm.weight": Tensor(("head_dim",), when="qk_layernorm"),
    "model.layers.{layer}.self_attn.q_layernorm.bias": Tensor(("head_dim",), when="qk_layernorm"),
    "model.layers.{layer}.self_attn.k_layernorm.weight": Tensor(("head_dim",), when="qk_layernorm"),
    "model.layers.{layer}.self_attn.k_layernorm.bias": Tensor(("head_dim",), when="qk_layernorm"),
    "model.layers.{layer}.mlp.fc1.weight": Tensor(("ffn", "hidden")),
    "model.layers.{layer}.mlp.fc1.bias": Tensor(("ffn",)),
    "model.layers.{layer}.mlp.fc2.weight": Tensor(("hidden", "ffn")),
    "model.layers.{layer}.mlp.fc2.bias": Tensor(("hidden",)),
    "model.final_layernorm.weight": Tensor(("hidden",)),
    "model.final_layernorm.bias": Tensor(("hidden",)),
    "lm_head.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
    "lm_head.bias": Tensor(("vocab",)),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "layer_norm_eps": 1e-5,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}

EPSILON = "layer_norm_eps"

TINY = llama.TINY | {"model_type": "phi", "architectures": ["PhiForCausalLM"]}

layer_types = llama.layer_types


def refusal(config: Mapping[str, Any]) -> str | None:
    """transformers sizes the norms of queries and keys by hidden size and heads, whatever `head_dim` says."""
    follows = config["hidden_size"] // config["num_attention_heads"]
    head_dim = config["head_dim"] or follows
    if config["qk_layernorm"] and head_dim != follows:
        return (
            f"its query and key norms need a hidden_size of {config['num_attention_heads']} heads times "
            f"{head_dim}; prune hidden and kv_groups together"
        )
    return None
