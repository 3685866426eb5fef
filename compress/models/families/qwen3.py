"""Qwen3: Llama with norms on every query and key head, a head dimension of its own, and Qwen2's windows."""

from compress.models.families import llama, qwen2
from compress.models.family import Tensor

TENSORS = {name: row for name, row in llama.TENSORS.items() if row.when != "mlp_bias"} | {
    "model.layers.{layer}.self_attn.q_norm.weight": Tensor(("head_dim",)),
    "model.layers.{layer}.self_attn.k_norm.weight": Tensor(("head_dim",)),
}

DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}

TINY = llama.TINY | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}

layer_types = qwen2.layer_types
