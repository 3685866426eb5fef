"""BERT as a masked language model: norms behind attention and MLP, learned positions and segments."""

from collections.abc import Mapping
from typing import Any

from compress.models.families import gpt_neox, llama
from compress.models.family import Tensor

BODY = {
    "embeddings.word_embeddings.weight": Tensor(("vocab", "hidden")),
    "embeddings.position_embeddings.weight": Tensor(("positions", "hidden")),
    "embeddings.token_type_embeddings.weight": Tensor(("segments", "hidden")),
    "embeddings.LayerNorm.weight": Tensor(("hidden",)),
    "embeddings.LayerNorm.bias": Tensor(("hidden",)),
    "encoder.layer.{layer}.attention.self.query.weight": Tensor(("query", "hidden")),
    "encoder.layer.{layer}.attention.self.query.bias": Tensor(("query",)),
    "encoder.layer.{layer}.attention.self.key.weight": Tensor(("key_value", "hidden")),
    "encoder.layer.{layer}.attention.self.key.bias": Tensor(("key_value",)),
    "encoder.layer.{layer}.attention.self.value.weight": Tensor(("key_value", "hidden")),
    "encoder.layer.{layer}.attention.self.value.bias": Tensor(("key_value",)),
    "encoder.layer.{layer}.attention.output.dense.weight": Tensor(("hidden", "query")),
    "encoder.layer.{layer}.attention.output.dense.bias": Tensor(("hidden",)),
    "encoder.layer.{layer}.attention.output.LayerNorm.weight": Tensor(("hidden",)),
    "encoder.layer.{layer}.attention.output.LayerNorm.bias": Tensor(("hidden",)),
    "encoder.layer.{layer}.intermediate.dense.weight": Tensor(("ffn", "hidden")),
    "encoder.layer.{layer}.intermediate.dense.bias": Tensor(("ffn",)),
    "encoder.layer.{layer}.output.dense.weight": Tensor(("hidden", "ffn")),
    "encoder.layer.{layer}.output.dense.bias": Tensor(("hidden",)),
    "encoder.layer.{layer}.output.LayerNorm.weight": Tensor(("hidden",)),
    "encoder.layer.{layer}.output.LayerNorm.bias": Tensor(("hidden",)),
}
"""What RoBERTa has too, under its own name."""

TENSORS = {f"bert.{name}": row for name, row in BODY.items()} | {
    "cls.predictions.transform.dense.weight": Tensor(("hidden", "hidden")),
    "cls.predictions.transform.dense.bias": Tensor(("hidden",)),
    "cls.predictions.transform.LayerNorm.weight": Tensor(("hidden",)),
    "cls.predictions.transform.LayerNorm.bias": Tensor(("hidden",)),
    "cls.predictions.bias": Tensor(("vocab",)),
    "cls.predictions.decoder.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
    "cls.predictions.decoder.bias": Tensor(("vocab",), unless="tie_word_embeddings"),
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

KEYS = gpt_neox.KEYS
EPSILON = "layer_norm_eps"
ENCODER = True
REDUNDANT = (".embeddings.position_ids",)

TINY = gpt_neox.TINY | {"model_type": "bert", "architectures": ["BertForMaskedLM"], "type_vocab_size": 2}

layer_types = llama.layer_types


def refusal(config: Mapping[str, Any]) -> str | None:
    """Only the encoder, with its masked-language-model head, has a table."""
    if config["is_decoder"] or config["add_cross_attention"]:
        return "it is used as a decoder (is_decoder, add_cross_attention)"
    architectures = config.get("architectures") or []
    if architectures and not any(name.endswith("ForMaskedLM") for name in architectures):
        return f"it is a {architectures[0]}; only masked language models of this family can be"
    return None
