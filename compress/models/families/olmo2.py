"""OLMo 2: Llama with norms behind attention and MLP instead of before, and over all queries and all keys."""

from compress.models.families import llama, olmo
from compress.models.family import Tensor

TENSORS = {
    name: row
    for name, row in llama.TENSORS.items()
    if "input_layernorm" not in name and row.when != "mlp_bias"
} | {
    "model.layers.{layer}.self_attn.q_norm.weight": Tensor(("query",)),
    "model.layers.{layer}.self_attn.k_norm.weight": Tensor(("key_value",)),
    "model.layers.{layer}.post_feedforward_layernorm.weight": Tensor(("hidden",)),
}

DEFAULTS = olmo.DEFAULTS | {"rms_norm_eps": 1e-5}

RESIDUAL_ADDS = False

TINY = olmo.TINY | {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}

layer_types = llama.layer_types
