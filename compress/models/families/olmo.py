"""OLMo: Llama whose norms have neither weight nor bias, with a constant epsilon."""

from compress.models.families import llama

TENSORS = {name: row for name, row in llama.TENSORS.items() if "norm" not in name and row.when != "mlp_bias"}

DEFAULTS = llama.DEFAULTS | {"vocab_size": 50304}

EPSILON = None
NORMS_WITHOUT_WEIGHTS = (
    "model.layers.{layer}.input_layernorm",
    "model.layers.{layer}.post_attention_layernorm",
    "model.norm",
)

TINY = llama.TINY | {
    "model_type": "olmo",
    "architectures": ["OlmoForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

layer_types = llama.layer_types
