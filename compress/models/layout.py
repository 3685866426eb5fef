"""Where a model's parts are, known from its configuration alone.

Exact shapes, what each prunable unit touches and where hooks go are all read from the family's one table
(`family.Family.TENSORS`), so they cannot disagree.

Units are what pruning removes as a whole: a layer, a KV group (one key-value head with the query heads that
share it), a query head inside its group, an FFN neuron, an expert, a neuron of an expert, a hidden channel.
`Layout.width` says how many places of an axis one unit owns: on ``query`` a KV group owns
``heads_per_group * head_dim`` consecutive rows and a head ``head_dim``; on ``key_value`` a group owns ``head_dim``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, cast

from compress.errors import InputError
from compress.models.family import (
    KEYS,
    WIDTH_AXES,
    Axis,
    Config,
    Dim,
    Family,
    Tensor,
    WidthAxis,
    flat,
    option,
)
from compress.models.known import family_of, is_known
from compress.records import ModelSpec, TensorSpec

__all__ = [
    "Axis",
    "Config",
    "Dim",
    "Family",
    "Layout",
    "Tensor",
    "WidthAxis",
    "is_known",
    "layout",
    "spec_from_config",
]


@dataclass(frozen=True)
class Layout:
    """A configuration read through its family's table."""

    config: Config
    family: Family
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    ffn: int = 0
    positions: int = 0
    segments: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    _keys: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads

    @cached_property
    def tensors(self) -> dict[str, tuple[Dim, ...]]:
        """The axes of every stored tensor, by full name."""
        return {
            name.format(layer=layer, expert=expert): axes
            for name, axes in self._rows()
            for layer in range(self.num_layers if "{layer}" in name else 1)
            for expert in range(self.num_experts if "{expert}" in name else 1)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor; a tied output head is not stored."""
        return {name: tuple(map(self.size, axes)) for name, axes in self.tensors.items()}

    @property
    def num_parameters(self) -> int:
        return sum(self._copies(name) * prod(map(self.size, axes)) for name, axes in self._rows())

    def size(self, dim: Dim) -> int:
        """Return how long a dimension is."""
        if isinstance(dim, tuple):
            return sum(map(self.size, dim))
        heads = {"query": self.num_heads, "key_value": self.num_kv_heads, "heads_qkv": 3 * self.num_heads}
        if dim in heads:
            return heads[dim] * self.head_dim
        return int(self.num_experts if dim == "experts" else getattr(self, dim))

    def length(self, axis: WidthAxis) -> int:
        """Return how many units there are along an axis."""
        return {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "kv_groups": self.num_kv_heads,
            "heads": self.heads_per_group,
            "experts": self.num_experts,
            "expert_ffn": self.expert_ffn,
        }[axis]

    @cached_property
    def width_axes(self) -> tuple[WidthAxis, ...]:
        """The axes this model can be narrowed along."""
        dims = {dim for axes in self.tensors.values() for entry in axes for dim in flat(entry)}
        there = {
            "hidden": "hidden" in dims,
            "ffn": "ffn" in dims,
            "kv_groups": bool(dims & {"key_value", "heads_qkv"}),
            "heads": "query" in dims and self.heads_per_group > 1,
            "experts": "experts" in dims,
            "expert_ffn": "expert_ffn" in dims,
        }
        return tuple(axis for axis in WIDTH_AXES if there[axis])

    @property
    def refusal(self) -> str | None:
        """Why transformers would refuse these sizes, if it would."""
        heads, groups, model_type = self.num_heads, self.num_kv_heads, self.config["model_type"]
        if heads % groups:
            return f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})"
        if self.heads_fill_hidden and self.hidden != heads * self.head_dim:
            return (
                f"{model_type} needs a hidden size of heads times their {self.head_dim} dimensions; "
                f"{self.hidden} is not {heads} times that. Prune hidden and kv_groups together"
            )
        if option(self.family, "HEADS_DIVIDE_HIDDEN") and self.hidden % heads:
            return f"{model_type} needs a hidden_size that its {heads} attention heads divide; {self.hidden} is not"
        if self.num_experts < self.experts_per_token:
            return f"{self.num_experts} experts are fewer than the {self.experts_per_token} each token uses"
        reason: str | None = option(self.family, "refusal")({**self.family.DEFAULTS, **self.config})
        return reason and f"this {model_type} model cannot be compressed: {reason}"

    @property
    def heads_fill_hidden(self) -> bool:
        """Whether the attention's width is the hidden size by construction: heads and channels go together."""
        return self._keys.get("head_dim") is None

    @cached_property
    def layers(self) -> list[str]:
        """Module names of the layers in the live model, first to last."""
        return [f"{self._layer_prefix}.{layer}" for layer in range(self.num_layers)]

    def layer_of(self, tensor: str) -> int | None:
        """Return the number of the layer a tensor belongs to, ``None`` for those outside the layers."""
        prefix = self._layer_prefix + "."
        return int(tensor[len(prefix) :].partition(".")[0]) if tensor.startswith(prefix) else None

    def expert_of(self, tensor: str) -> int | None:
        """Return the number of the expert a tensor belongs to, ``None`` for those outside the experts."""
        _, found, after = tensor.partition(".experts.")
        return int(after.partition(".")[0]) if found else None

    def live(self, module: str) -> str:
        """Return the name in the live model of the module a stored tensor's name says."""
        return str(option(self.family, "LIVE").get(module, module))

    def live_tensor(self, tensor: str) -> str:
        """Return the name in the live model of a stored tensor outside the experts."""
        module, dot, kind = tensor.rpartition(".")
        return self.live(module) + dot + kind

    def readers(self, axis: Axis) -> list[str]:
        """Return the linear modules whose input is `axis` and that write to the hidden state, by layer.

        ``ffn`` gives the ``down_proj``, ``query`` the ``o_proj`` modules.
        """
        return [
            name.removesuffix(".weight")
            for name, axes in self.tensors.items()
            if self.layer_of(name) is not None and {*axes} == {"hidden", axis} and len(axes) == 2
            and self.expert_of(name) is None and axes.index("hidden") == self.out_dim(name)
        ]  # fmt: skip

    def out_dim(self, tensor: str) -> int:
        """Return which dimension of a stored linear weight its output runs along (1 in GPT-2's ``Conv1D``)."""
        row = self.tensors[tensor]
        return 1 if len(row) == 2 and option(self.family, "LINEAR_IS_IN_OUT") and self.layer_of(
            tensor
        ) is not None else 0  # fmt: skip

    @cached_property
    def norms(self) -> list[str]:
        """Stored module names of the norms over the hidden state, in the table's order.

        Norms without weights have the names the live model gives them.
        """
        return self.norms_over("hidden") or [
            name.format(layer=layer)
            for name in option(self.family, "NORMS_WITHOUT_WEIGHTS")
            for layer in range(self.num_layers if "{layer}" in name else 1)
        ]

    def norms_over(self, axis: Axis) -> list[str]:
        """Return the stored module names of the norms with a weight for every place of an axis.

        Every one-dimensional stored ``weight`` is a norm's: linear modules and embeddings have two dimensions.
        """
        suffix = ".weight"
        return [
            name.removesuffix(suffix)
            for name, axes in self.tensors.items()
            if axes == (axis,) and name.endswith(suffix)
        ]

    @cached_property
    def embedding(self) -> str:
        """The stored name of the token embedding."""
        return next(name for name, axes in self.tensors.items() if axes == ("vocab", "hidden"))

    @cached_property
    def head(self) -> str | None:
        """The stored name of the output head's weight, ``None`` when it is tied to the embedding."""
        found = [name for name, axes in self.tensors.items() if axes == ("vocab", "hidden")]
        return found[-1] if len(found) > 1 else None

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.head is None

    def resized(
        self,
        *,
        hidden: int | None = None,
        ffn: int | None = None,
        num_kv_heads: int | None = None,
        heads_per_group: int | None = None,
        num_experts: int | None = None,
        expert_ffn: int | None = None,
        vocab: int | None = None,
    ) -> "Layout":
        """Return the layout of a narrower model; query heads follow their key-value heads, `head_dim` stays.

        The norms' epsilon grows as the hidden size shrinks, so removing channels that are always zero, with
        the norm gains times ``sqrt(H/H')``, changes nothing: ``H'/H · (Σx²/H' + eps·H/H') = Σx²/H + eps``.
        """
        groups = num_kv_heads or self.num_kv_heads
        wanted = {
            "hidden": hidden or self.hidden,
            "ffn": ffn or self.ffn,
            "num_kv_heads": groups,
            "num_heads": groups * (heads_per_group or self.heads_per_group),
            "num_experts": num_experts or self.num_experts,
            "expert_ffn": expert_ffn or self.expert_ffn,
            "vocab": vocab or self.vocab,
        }
        changed = {name: size for name, size in wanted.items() if size != getattr(self, name)}
        if not changed:
            return self
        sizes = wanted | {"head_dim": self.head_dim}
        written = {
            name for name in sizes if name in changed or name in ("num_kv_heads", "num_heads", "head_dim")
        }
        written |= {"hidden", "ffn"} if self._keys.get("ffn") and self.ffn else {"hidden"}
        config = self.config | {key: sizes[name] for name in written if (key := self._keys.get(name))}
        epsilon = option(self.family, "EPSILON")
        if "hidden" in changed and epsilon is not None:
            eps = self.config.get(epsilon, self.family.DEFAULTS[epsilon])
            config[epsilon] = eps * self.hidden / sizes["hidden"]
        narrower: Layout = replace(self, config=config, **cast(dict[str, Any], changed))
        return narrower

    def to_lengths(self, lengths: Mapping[WidthAxis, int]) -> "Layout":
        """Return the layout with these numbers of units, an axis that is not named as it is."""
        return self.resized(
            hidden=lengths.get("hidden"),
            ffn=lengths.get("ffn"),
            num_kv_heads=lengths.get("kv_groups"),
            heads_per_group=lengths.get("heads"),
            num_experts=lengths.get("experts"),
            expert_ffn=lengths.get("expert_ffn"),
        )

    def with_layers(self, kept: Sequence[int]) -> "Layout":
        """Return the layout that has only the `kept` layers, each with its own attention type."""
        config = self.config | {str(self._keys["layers"]): len(kept)}
        types = self.config.get("layer_types") or self.family.layer_types(self.config)
        if types:
            config["layer_types"] = [types[layer] for layer in kept]
        settings = {**self.family.DEFAULTS, **self.config}
        for key in option(self.family, "PER_LAYER"):
            config[key] = [settings[key][layer] for layer in kept]
        return replace(self, config=config, num_layers=len(kept))

    @cached_property
    def _layer_prefix(self) -> str:
        return next(name for name in self.family.TENSORS if "{layer}" in name).partition(".{layer}")[0]

    def _rows(self) -> Iterator[tuple[str, tuple[Dim, ...]]]:
        settings = {**self.family.DEFAULTS, **self.config}
        return ((name, row.axes) for name, row in self.family.TENSORS.items() if row.exists(settings))

    def _copies(self, name: str) -> int:
        layers = self.num_layers if "{layer}" in name else 1
        return layers * (self.num_experts if "{expert}" in name else 1)


def layout(config: Config) -> Layout:
    """Return where the parts of a model are. Raises `InputError` for an unknown family or bad sizes."""
    family = family_of(config)
    keys = _names(config, family)
    settings = {**family.DEFAULTS, **config}
    sizes: dict[str, Any] = {name: settings.get(key) for name, key in keys.items() if key}
    # transformers reads a null (or, for the head dimension, an absent) setting as "as without grouping".
    sizes["num_kv_heads"] = sizes.get("num_kv_heads") or sizes["num_heads"]
    for name in ("hidden", "num_heads"):
        sizes[name] = _size(sizes[name], keys[name])
    sizes["head_dim"] = sizes.get("head_dim") or sizes["hidden"] // sizes["num_heads"]
    if (times := option(family, "FFN_TIMES_HIDDEN")) and sizes.get("ffn") is None:
        sizes["ffn"] = times * sizes["hidden"]
    result = Layout(
        config=config,
        family=family,
        num_layers=_size(sizes.pop("layers"), keys["layers"]),
        _keys=keys,
        **{name: _size(size, keys[name]) for name, size in sizes.items()},
    )
    if result.refusal is not None:
        raise InputError(result.refusal)
    return result


def spec_from_config(config: Config, dtype: str) -> ModelSpec:
    """Return what a model of this configuration stores when every tensor has `dtype`. Raises `InputError`."""
    model = layout(config)
    tensors = {name: TensorSpec(shape=shape, dtype=dtype) for name, shape in model.shapes().items()}
    return ModelSpec(config=config, tensors=tensors, num_parameters=model.num_parameters)


def _names(config: Config, family: Family) -> dict[str, str | None]:
    """Return, for every size a family has, the name the configuration has it under."""
    dims = {axis for row in family.TENSORS.values() for dim in row.axes for axis in flat(dim)}
    has_experts = "experts" in dims
    there = {
        "ffn": "ffn" in dims,
        "positions": "positions" in dims,
        "segments": "segments" in dims,
        "num_experts": has_experts,
        "experts_per_token": has_experts,
        "expert_ffn": has_experts,
    }
    names: dict[str, str | None] = {}
    for size, usual in KEYS.items():
        own = option(family, "KEYS").get(size, usual)
        candidates = (own,) if isinstance(own, str) else (own or ())
        if there.get(size, True):
            names[size] = next((c for c in candidates if c in config), candidates[0] if candidates else None)
    return names


def _size(value: object, key: str | None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(
            f"the model's configuration has {key}: {value!r}; it must be a positive whole number"
        )
    return value
