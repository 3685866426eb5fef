"""DistilBERT as a masked language model: BERT without segments, under other names, with a constant epsilon."""

from typing import Any

from compress.models.families import bert
from compress.models.family import Tensor

TENSORS = {
    "distilbert.embeddings.word_embeddings.weight": Tensor(("vocab", "hidden")),
    "distilbert.embeddings.position_embeddings.weight": Tensor(("positions", "hidden")),
    "distilbert.embeddings.LayerNorm.weight": Tensor(("hidden",)),
    "distilbert.embeddings.LayerNorm.bias": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.attention.q_lin.weight": Tensor(("query", "hidden")),
    "distilbert.transformer.layer.{layer}.attention.q_lin.bias": Tensor(("query",)),
    "distilbert.transformer.layer.{layer}.attention.k_lin.weight": Tensor(("key_value", "hidden")),
    "distilbert.transformer.layer.{layer}.attention.k_lin.bias": Tensor(("key_value",)),
    "distilbert.transformer.layer.{layer}.attention.v_lin.weight": Tensor(("key_value", "hidden")),
    "distilbert.transformer.layer.{layer}.attention.v_lin.bias": Tensor(("key_value",)),
    "distilbert.transformer.layer.{layer}.attention.out_lin.weight": Tensor(("hidden", "query")),
    "distilbert.transformer.layer.{layer}.attention.out_lin.bias": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.sa_layer_norm.weight": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.sa_layer_norm.bias": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.ffn.lin1.weight": Tensor(("ffn", "hidden")),
    "distilbert.transformer.layer.{layer}.ffn.lin1.bias": Tensor(("ffn",)),
    "distilbert.transformer.layer.{layer}.ffn.lin2.weight": Tensor(("hidden", "ffn")),
    "distilbert.transformer.layer.{layer}.ffn.lin2.bias": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.output_layer_norm.weight": Tensor(("hidden",)),
    "distilbert.transformer.layer.{layer}.output_layer_norm.bias": Tensor(("hidden",)),
    "vocab_transform.weight": Tensor(("hidden", "hidden")),
    "vocab_transform.bias": Tensor(("hidden",)),
    "vocab_layer_norm.weight": Tensor(("hidden",)),
    "vocab_layer_norm.bias": Tensor(("hidden",)),
    "vocab_projector.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
    "vocab_projector.bias": Tensor(("vocab",)),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "dim": 768,
    "hidden_dim": 3072,
    "n_layers": 6,
    "n_heads": 12,
    "max_position_embeddings": 512,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

KEYS = {
    "layers": ("n_layers", "num_hidden_layers"),
    "hidden": ("dim", "hidden_size"),
    "ffn": "hidden_dim",
    "num_heads": ("n_heads", "num_attention_heads"),
    "num_kv_heads": None,
    "head_dim": None,
}
EPSILON = None
ENCODER = True
REDUNDANT = bert.REDUNDANT

TINY: dict[str, Any] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "vocab_size": 259,
    "dim": 64,
    "hidden_dim": 192,
    "n_layers": 4,
    "n_heads": 8,
    "max_position_embeddings": 512,
}

layer_types = bert.layer_types
refusal = bert.refusal
