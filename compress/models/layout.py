"""Where a model's parts are, known from its configuration alone.

A family (``families/<model_type>.py``) is a table: parameter name -> the axes of that tensor. Exact shapes,
what each prunable unit touches and where hooks go are all read from that one table, so they cannot disagree.

Units are what pruning removes as a whole: a layer, a KV group (one key-value head with the query heads that
share it), an FFN neuron, a hidden channel. On the ``query`` axis a KV group owns
``num_heads / num_kv_heads * head_dim`` consecutive rows, on ``key_value`` it owns ``head_dim``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, Protocol, cast

from compress import plugins
from compress.errors import InputError, nearest
from compress.records import ModelSpec, TensorSpec

Config = dict[str, Any]
"""What ``config.json`` holds."""

Axis = Literal["vocab", "hidden", "ffn", "query", "key_value", "head_dim"]


WidthAxis = Literal["hidden", "ffn", "kv_groups"]
"""What makes a model narrow or wide, counted in units: channels, neurons a layer, KV groups a layer."""


@dataclass(frozen=True)
class Tensor:
    """A row of a family's table: the axes of one stored tensor and the setting its existence hangs on."""

    axes: tuple[Axis, ...]
    when: str | None = None
    unless: str | None = None

    def exists(self, config: Mapping[str, Any]) -> bool:
        return (self.when is None or bool(config.get(self.when))) and not (
            self.unless is not None and config.get(self.unless)
        )


class Family(Protocol):
    """What a file in ``families/`` holds. ``{layer}`` in a tensor's name stands for the layer's number."""

    TENSORS: Mapping[str, Tensor]
    """Every parameter the family can store."""
    DEFAULTS: Mapping[str, Any]
    """What transformers assumes for the settings a shape depends on when ``config.json`` omits them."""
    HEADS_DIVIDE_HIDDEN: bool
    """Whether transformers refuses a hidden size that is no multiple of the number of query heads."""
    TINY: Mapping[str, Any]
    """A configuration small enough to rehearse a pipeline with."""

    def layer_types(self, config: Mapping[str, Any]) -> list[str] | None:
        """Return the attention type of every layer where the omitted ``layer_types`` depends on the layer."""


@dataclass(frozen=True)
class Layout:
    """A configuration read through its family's table."""

    config: Config
    family: Family
    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def tensors(self) -> dict[str, tuple[Axis, ...]]:
        """The axes of every stored tensor, by full name."""
        return {
            name.format(layer=layer): axes
            for name, axes in self._rows()
            for layer in range(self._copies(name))
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor; a tied output head is not stored."""
        return {name: tuple(map(self.size, axes)) for name, axes in self.tensors.items()}

    @property
    def num_parameters(self) -> int:
        return sum(self._copies(name) * prod(map(self.size, axes)) for name, axes in self._rows())

    def size(self, axis: Axis) -> int:
        """Return how long an axis is."""
        if axis == "query":
            return self.num_heads * self.head_dim
        if axis == "key_value":
            return self.num_kv_heads * self.head_dim
        return int(getattr(self, axis))

    def length(self, axis: WidthAxis) -> int:
        """Return how many units there are along an axis."""
        return {"hidden": self.hidden, "ffn": self.ffn, "kv_groups": self.num_kv_heads}[axis]

    @property
    def refusal(self) -> str | None:
        """Why transformers would refuse these numbers of heads, if it would."""
        heads, groups = self.num_heads, self.num_kv_heads
        if heads % groups:
            return f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})"
        if self.family.HEADS_DIVIDE_HIDDEN and self.hidden % heads:
            family = self.config["model_type"]
            return (
                f"{family} needs a hidden_size that its {heads} attention heads divide; {self.hidden} is not"
            )
        return None

    @property
    def layers(self) -> list[str]:
        """Module names of the layers in the live model, first to last."""
        prefix = next(name for name in self.family.TENSORS if "{layer}" in name).partition(".{layer}")[0]
        return [f"{prefix}.{layer}" for layer in range(self.num_layers)]

    def layer_of(self, tensor: str) -> int | None:
        """Return the number of the layer a tensor belongs to, ``None`` for those outside the layers."""
        inside = tensor.removeprefix(self.layers[0].removesuffix("0"))
        return None if inside == tensor else int(inside.partition(".")[0])

    def readers(self, axis: Axis) -> list[str]:
        """Return the linear modules whose input is `axis` and that write to the hidden state, by layer.

        ``ffn`` gives the ``down_proj``, ``query`` the ``o_proj`` modules.
        """
        return [
            name.removesuffix(".weight") for name, axes in self.tensors.items() if axes == ("hidden", axis)
        ]

    @property
    def norms(self) -> list[str]:
        """Module names of the norms over the hidden state."""
        suffix = "norm.weight"
        return [
            name.removesuffix(".weight")
            for name, axes in self.tensors.items()
            if axes == ("hidden",) and name.endswith(suffix)
        ]

    def resized(
        self, *, hidden: int | None = None, ffn: int | None = None, num_kv_heads: int | None = None
    ) -> "Layout":
        """Return the layout of a narrower model; query heads follow their key-value heads, `head_dim` stays.

        The norms' epsilon grows as the hidden size shrinks, so removing channels that are always zero, with
        the norm gains times ``sqrt(H/H')``, changes nothing: ``H'/H · (Σx²/H' + eps·H/H') = Σx²/H + eps``.
        """
        hidden, ffn, groups = hidden or self.hidden, ffn or self.ffn, num_kv_heads or self.num_kv_heads
        heads = groups * self.heads_per_group
        if (hidden, ffn, groups) == (self.hidden, self.ffn, self.num_kv_heads):
            return self
        config = self.config | {
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": self.head_dim,
        }
        if hidden != self.hidden:
            eps = self.config.get("rms_norm_eps", self.family.DEFAULTS["rms_norm_eps"])
            config["rms_norm_eps"] = eps * self.hidden / hidden
        return replace(self, config=config, hidden=hidden, ffn=ffn, num_heads=heads, num_kv_heads=groups)

    def with_layers(self, kept: Sequence[int]) -> "Layout":
        """Return the layout that has only the `kept` layers, each with its own attention type."""
        config = self.config | {"num_hidden_layers": len(kept)}
        types = self.config.get("layer_types") or self.family.layer_types(self.config)
        if types:
            config["layer_types"] = [types[layer] for layer in kept]
        return replace(self, config=config, num_layers=len(kept))

    def _rows(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        settings = {**self.family.DEFAULTS, **self.config}
        return ((name, row.axes) for name, row in self.family.TENSORS.items() if row.exists(settings))

    def _copies(self, name: str) -> int:
        return self.num_layers if "{layer}" in name else 1


def layout(config: Config) -> Layout:
    """Return where the parts of a model are. Raises `InputError` for an unknown family or bad sizes."""
    settings = {**(family := _family(config)).DEFAULTS, **config}
    heads = _size(settings, "num_attention_heads")
    hidden = _size(settings, "hidden_size")
    # transformers reads a null (or, for the head dimension, an absent) setting as "as without grouping".
    settings["num_key_value_heads"] = settings.get("num_key_value_heads") or heads
    settings["head_dim"] = settings.get("head_dim") or hidden // heads
    result = Layout(
        config=config,
        family=family,
        num_layers=_size(settings, "num_hidden_layers"),
        hidden=hidden,
        ffn=_size(settings, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_size(settings, "num_key_value_heads"),
        head_dim=_size(settings, "head_dim"),
        vocab=_size(settings, "vocab_size"),
    )
    if result.refusal is not None:
        raise InputError(result.refusal)
    return result


def spec_from_config(config: Config, dtype: str) -> ModelSpec:
    """Return what a model of this configuration stores when every tensor has `dtype`. Raises `InputError`."""
    model = layout(config)
    tensors = {name: TensorSpec(shape=shape, dtype=dtype) for name, shape in model.shapes().items()}
    return ModelSpec(config=config, tensors=tensors, num_parameters=model.num_parameters)


def is_known(config: Config) -> bool:
    """Whether there is a family file for this architecture."""
    return config.get("model_type") in plugins.available("models.families")


def _family(config: Config) -> Family:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise InputError(
            "the model's configuration has no 'model_type'; it must be a Hugging Face config.json"
        )
    if not is_known(config):
        known = ", ".join(plugins.available("models.families"))
        close = nearest(name, plugins.available("models.families"))
        raise InputError(f"models of architecture '{name}' cannot be compressed{close} Known: {known}")
    return cast(Family, plugins.load("models.families", name))


def _size(settings: Mapping[str, Any], key: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f"the model's configuration has {key}: {value!r}; it must be a positive whole number"
        )
    return value
