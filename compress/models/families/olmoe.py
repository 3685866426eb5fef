"""OLMoE: experts in every layer, norms over all queries and all keys, heads that fill the hidden size."""

from compress.models.families import llama, olmo2, qwen3_moe
from compress.models.family import Tensor

EXPERTS = {name: row for name, row in qwen3_moe.TENSORS.items() if ".mlp." in name}

TENSORS = {name: row for name, row in llama.TENSORS.items() if ".mlp." not in name} | EXPERTS | {
    "model.layers.{layer}.self_attn.q_norm.weight": Tensor(("query",)),
    "model.layers.{layer}.self_attn.k_norm.weight": Tensor(("key_value",)),
}  # fmt: skip

DEFAULTS = olmo2.DEFAULTS | {
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}

KEYS = {"head_dim": None, "expert_ffn": "intermediate_size"}

TINY = {name: value for name, value in olmo2.TINY.items() if name != "head_dim"} | {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "intermediate_size": 48,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}

layer_types = llama.layer_types
