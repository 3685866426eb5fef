"""Mistral: Llama without any bias."""

from compress.models.families import llama

TENSORS = {name: row for name, row in llama.TENSORS.items() if row.when is None}

DEFAULTS = llama.DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8}

TINY = llama.TINY | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}

layer_types = llama.layer_types
