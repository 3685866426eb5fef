"""RoBERTa as a masked language model: BERT with another head, and positions that begin behind the padding id."""

from compress.models.families import bert
from compress.models.family import Tensor

TENSORS = {f"roberta.{name}": row for name, row in bert.BODY.items()} | {
    "lm_head.dense.weight": Tensor(("hidden", "hidden")),
    "lm_head.dense.bias": Tensor(("hidden",)),
    "lm_head.layer_norm.weight": Tensor(("hidden",)),
    "lm_head.layer_norm.bias": Tensor(("hidden",)),
    "lm_head.bias": Tensor(("vocab",)),
    "lm_head.decoder.weight": Tensor(("vocab", "hidden"), unless="tie_word_embeddings"),
    "lm_head.decoder.bias": Tensor(("vocab",), unless="tie_word_embeddings"),
}

DEFAULTS = bert.DEFAULTS | {"vocab_size": 50265}

KEYS = bert.KEYS
EPSILON = bert.EPSILON
ENCODER = bert.ENCODER
SKIPS_POSITIONS = True
REDUNDANT = bert.REDUNDANT

TINY = bert.TINY | {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}

layer_types = bert.layer_types
refusal = bert.refusal
