"""GPT-NeoX (Pythia): LayerNorm, attention and MLP side by side; query, key and value of each head in turn."""

from typing import Any

from compress.models.families import llama
from compress.models.family import Tensor

TENSORS = {
    "gpt_neox.embed_in.weight": Tensor(("vocab", "hidden")),
    "gpt_neox.layers.{layer}.input_layernorm.weight": Tensor(("hidden",)),
    "gpt_neox.layers.{layer}.input_layernorm.bias": Tensor(("hidden",)),
    "gpt_neox.layers.{layer}.post_attention_layernorm.weight": Tensor(("hidden",)),
    "gpt_neox.layers.{layer}.post_attention_layernorm.bias": Tensor(("hidden",)),
    "gpt_neox.layers.{layer}.attention.query_key_value.weight": Tensor(("heads_qkv", "hidden")),
    "gpt_neox.layers.{layer}.attention.query_key_value.bias": Tensor(("heads_qkv",), when="attention_bias"),
    "gpt_neox.layers.{layer}.attention.dense.weight": Tensor(("hidden", "query")),
    "gpt_neox.layers.{layer}.attention.dense.bias": Tensor(("hidden",), when="attention_bias"),
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight": Tensor(("ffn", "hidden")),
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias": Tensor(("ffn",)),
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight": Tensor(("hidden", "ffn")),
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias": Tensor(("hidden",)),
    "gpt_neox.final_layer_norm.weight": Tensor(("hidden",)),
    "gpt_neox.final_layer_norm.bias": Tensor(("hidden",)),
    "embed_out.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "layer_norm_eps": 1e-5,
    "attention_bias": True,
    "tie_word_embeddings": False,
}

KEYS = {"num_kv_heads": None, "head_dim": None}
EPSILON = "layer_norm_eps"
REDUNDANT = (".attention.bias", ".attention.masked_bias")
LIVE = {"embed_out": "lm_head"}

TINY = {
    name: value for name, value in llama.TINY.items() if name not in ("num_key_value_heads", "head_dim")
} | {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}

layer_types = llama.layer_types
