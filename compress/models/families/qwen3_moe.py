"""Qwen3-MoE: Qwen3 with experts in every layer, of which each token uses a few."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import llama, qwen3
from compress.models.family import Tensor

TENSORS = {name: row for name, row in qwen3.TENSORS.items() if ".mlp." not in name} | {
    "model.layers.{layer}.mlp.gate.weight": Tensor(("experts", "hidden")),
    "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight": Tensor(("expert_ffn", "hidden")),
    "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": Tensor(("expert_ffn", "hidden")),
    "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": Tensor(("hidden", "expert_ffn")),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "tie_word_embeddings": False,
}

TINY = llama.TINY | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "moe_intermediate_size": 48,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}

layer_types = llama.layer_types


def refusal(config: Mapping[str, Any]) -> str | None:
    """Layers without experts would need a table of their own."""
    if config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        return "some of its layers have no experts (mlp_only_layers, decoder_sparse_step)"
    return None
