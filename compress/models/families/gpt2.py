"""GPT-2: LayerNorm, learned positions, query, key and value in one matrix; linear weights are ``[in, out]``."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import llama
from compress.models.family import Tensor

TENSORS = {
    "transformer.wte.weight": Tensor(("vocab", "hidden")),
    "transformer.wpe.weight": Tensor(("positions", "hidden")),
    "transformer.h.{layer}.ln_1.weight": Tensor(("hidden",)),
    "transformer.h.{layer}.ln_1.bias": Tensor(("hidden",)),
    "transformer.h.{layer}.attn.c_attn.weight": Tensor(("hidden", ("query", "key_value", "key_value"))),
    "transformer.h.{layer}.attn.c_attn.bias": Tensor((("query", "key_value", "key_value"),)),
    "transformer.h.{layer}.attn.c_proj.weight": Tensor(("query", "hidden")),
    "transformer.h.{layer}.attn.c_proj.bias": Tensor(("hidden",)),
    "transformer.h.{layer}.ln_2.weight": Tensor(("hidden",)),
    "transformer.h.{layer}.ln_2.bias": Tensor(("hidden",)),
    "transformer.h.{layer}.mlp.c_fc.weight": Tensor(("hidden", "ffn")),
    "transformer.h.{layer}.mlp.c_fc.bias": Tensor(("ffn",)),
    "transformer.h.{layer}.mlp.c_proj.weight": Tensor(("ffn", "hidden")),
    "transformer.h.{layer}.mlp.c_proj.bias": Tensor(("hidden",)),
    "transformer.ln_f.weight": Tensor(("hidden",)),
    "transformer.ln_f.bias": Tensor(("hidden",)),
    "lm_head.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_inner": None,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

KEYS = {
    "layers": ("n_layer", "num_hidden_layers"),
    "hidden": ("n_embd", "hidden_size"),
    "ffn": "n_inner",
    "num_heads": ("n_head", "num_attention_heads"),
    "num_kv_heads": None,
    "head_dim": None,
    "positions": ("n_positions", "max_position_embeddings"),
}
EPSILON = "layer_norm_epsilon"
FFN_TIMES_HIDDEN = 4
LINEAR_IS_IN_OUT = True
REDUNDANT = (".attn.bias", ".attn.masked_bias")

TINY: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 259,
    "n_embd": 64,
    "n_inner": 192,
    "n_layer": 4,
    "n_head": 8,
    "n_positions": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

layer_types = llama.layer_types


def refusal(config: Mapping[str, Any]) -> str | None:
    """Some variants depend on more than their tensors' shapes."""
    if config["scale_attn_by_inverse_layer_idx"]:
        return "scale_attn_by_inverse_layer_idx makes a layer compute otherwise when one before it is removed"
    if config["add_cross_attention"]:
        return "it is a decoder that reads an encoder (add_cross_attention)"
    return None
