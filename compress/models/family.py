"""What a family's file says: a table from parameter names to axes, and what is particular about the architecture.

The YAML never names a family; ``model_type`` in ``config.json`` does. Sizes, slicing and the places of hooks all
follow from the table (`layout.Layout`), so adding an architecture is adding one file here that copies no ``forward``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Config = dict[str, Any]
"""What ``config.json`` holds."""

Axis = Literal[
    "vocab", "positions", "segments", "hidden", "ffn", "query", "key_value", "head_dim", "heads_qkv", "experts",
    "expert_ffn",
]  # fmt: skip
"""``heads_qkv`` holds query, key and value of one head after another (GPT-NeoX)."""

Dim = Axis | tuple[Axis, ...]
"""One dimension of a stored tensor: an axis, or several one after another (a fused ``qkv_proj``)."""

WidthAxis = Literal["hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn"]
"""What makes a model narrow or wide, counted in units: channels of the model; neurons of a layer; KV groups of a
layer; query heads of a group; experts of a layer; neurons of an expert."""

WIDTH_AXES: tuple[WidthAxis, ...] = ("hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")

KEYS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "ffn": ("intermediate_size",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings",),
    "segments": ("type_vocab_size",),
    "num_experts": ("num_experts", "num_local_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_ffn": ("moe_intermediate_size",),
}
"""What ``config.json`` calls each size; a family that says otherwise has ``KEYS`` of its own. Of several names the
one that is there counts. No name: the size is not set but follows (``head_dim`` from hidden size and heads)."""


@dataclass(frozen=True)
class Tensor:
    """A row of a family's table: the axes of one stored tensor and the setting its existence hangs on."""

    axes: tuple[Dim, ...]
    when: str | None = None
    unless: str | None = None

    def exists(self, config: Mapping[str, Any]) -> bool:
        return (self.when is None or bool(config.get(self.when))) and not (
            self.unless is not None and config.get(self.unless)
        )


class Family(Protocol):
    """What a file in ``families/`` holds.

    ``{layer}`` in a tensor's name stands for the layer's number, ``{expert}`` for the expert's.
    """

    TENSORS: Mapping[str, Tensor]
    """Every parameter the family can store."""
    DEFAULTS: Mapping[str, Any]
    """What transformers assumes for the settings a shape depends on when ``config.json`` omits them."""
    TINY: Mapping[str, Any]
    """A configuration small enough to rehearse a pipeline with."""

    def layer_types(self, config: Mapping[str, Any]) -> list[str] | None:
        """Return the attention type of every layer where the omitted ``layer_types`` depends on the layer."""


OPTIONAL: dict[str, Any] = {
    "KEYS": {},
    "EPSILON": "rms_norm_eps",
    "NORM_OFFSET": 0.0,
    "HEADS_DIVIDE_HIDDEN": False,
    "FFN_TIMES_HIDDEN": None,
    "LINEAR_IS_IN_OUT": False,
    "NORMS_WITHOUT_WEIGHTS": (),
    "EMBEDDING_TIMES_SQRT_HIDDEN": False,
    "RESIDUAL_ADDS": True,
    "LIVE": {},
    "ENCODER": False,
    "SKIPS_POSITIONS": False,
    "REDUNDANT": (),
    "PER_LAYER": (),
    "refusal": lambda config: None,
}
"""What a family's file may also hold, and what it means when it does not.

``KEYS`` its own names of sizes · ``EPSILON`` the setting with the norms' epsilon (``None``: a constant) ·
``NORM_OFFSET`` what a norm adds to its weight before it multiplies (1 in Gemma) · ``NORMS_WITHOUT_WEIGHTS`` the
modules that norm the hidden state where none of them has a weight (OLMo) · ``HEADS_DIVIDE_HIDDEN`` whether
transformers refuses a hidden size that is no multiple of the number of query heads ·
``FFN_TIMES_HIDDEN`` how many times the hidden size the FFN has where its setting is null (GPT-2: 4) ·
``LINEAR_IS_IN_OUT`` whether the layers' linear weights are stored ``[in, out]`` (GPT-2's ``Conv1D``) ·
``EMBEDDING_TIMES_SQRT_HIDDEN`` whether embeddings are multiplied by ``sqrt(hidden_size)`` · ``RESIDUAL_ADDS``
whether attention and MLP outputs are added to the hidden state as they are (no norm in between) · ``LIVE`` stored
module name -> live module name where they differ · ``ENCODER`` whether it is a masked language model ·
``SKIPS_POSITIONS`` whether the first token's position is the one behind the padding's id (RoBERTa) ·
``REDUNDANT`` how names of tensors end that old exporters stored and transformers ignores ·
``PER_LAYER`` settings that hold an entry for every layer, besides ``layer_types`` ·
``refusal(config)`` why a configuration cannot be compressed, if it cannot.
"""


def flat(dim: Dim) -> tuple[Axis, ...]:
    """Return the axes a dimension consists of."""
    return dim if isinstance(dim, tuple) else (dim,)


def option(family: Family, name: str) -> Any:
    """Return what a family says under one of the `OPTIONAL` names."""
    return getattr(family, name, OPTIONAL[name])
