"""Gemma: Llama whose norms multiply by ``1 + weight`` and whose embeddings are multiplied by ``sqrt(hidden_size)``."""

from compress.models.families import llama

TENSORS = {name: row for name, row in llama.TENSORS.items() if row.when != "mlp_bias"}

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "tie_word_embeddings": True,
}

NORM_OFFSET = 1.0
EMBEDDING_TIMES_SQRT_HIDDEN = True

TINY = llama.TINY | {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}

layer_types = llama.layer_types
