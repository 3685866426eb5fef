"""A family for an architecture that has no file: its table is traced, its particulars are tried out.

Nothing is believed because a name looks right. The settings that hold the sizes count only if transformers makes the
sizes the table predicts when they change; a unit can be pruned only if a small model of the architecture computes
the same with its units in another order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from transformers.pytorch_utils import Conv1D

from compress.errors import InputError
from compress.models.axes import Axes
from compress.models.family import KEYS, Config, Dim, Family, Tensor, flat
from compress.models.graph import meta_model, parsed, shortened, trace_axes
from compress.models.layout import Layout
from compress.models.narrowing import narrowings, tiny
from compress.models.particulars import particulars
from compress.models.proof import check_order_is_free, check_shapes, small_model, stored_shapes
from compress.models.task import writes

SIZES = {"hidden": "hidden", "ffn": "ffn", "vocab": "vocab", "positions": "positions", "segments": "segments",
         "num_experts": "experts", "expert_ffn": "expert_ffn"}  # fmt: skip
"""Sizes that are the length of an axis, and the axis."""


@dataclass(frozen=True)
class Derived:
    """A `family.Family` made from one configuration; for what the names mean see there and `family.OPTIONAL`."""

    TENSORS: Mapping[str, Tensor]
    DEFAULTS: Mapping[str, Any]
    KEYS: Mapping[str, str | None]
    ENCODER: bool
    TINY: Mapping[str, Any] = field(default_factory=dict)
    LIVE: Mapping[str, str] = field(default_factory=dict)
    EPSILON: str | None = None
    NORM_OFFSET: float = 0.0
    HEADS_DIVIDE_HIDDEN: bool = False
    LINEAR_IS_IN_OUT: bool = False
    EMBEDDING_TIMES_SQRT_HIDDEN: bool = False
    RESIDUAL_ADDS: bool = True
    SKIPS_POSITIONS: bool = False
    PER_LAYER: tuple[str, ...] = ()
    """Settings with one entry a layer, beside ``layer_types``: they lose entries as the model loses layers."""

    def layer_types(self, config: Mapping[str, Any]) -> list[str] | None:
        """Return the attention type of every layer, as transformers fills it in."""
        types = getattr(parsed(dict(config)), "layer_types", None)
        return list(types) if types and len(set(types)) > 1 else None


def derive_family(config: Config, time_limit_s: float = 60) -> Derived:
    """Return a family for models like the one of this configuration.

    Raises `InputError` with the reason for an architecture that cannot be pruned, `StepFailed` when tracing takes
    longer than the limit.
    """
    name = config.get("model_type")
    try:
        return _derived(config, time_limit_s)
    except InputError as error:
        raise InputError(
            f"there is no family file for models of architecture '{name}', and none can be derived: {error}"
        ) from error


def _derived(config: Config, time_limit_s: float) -> Derived:
    axes = trace_axes(config, time_limit_s)
    _check_axes(axes)
    settings = parsed(config)
    defaults = settings.to_dict()
    shapes = stored_shapes(shortened(config))
    family = Derived(
        TENSORS={tensor: Tensor(cast(tuple[Dim, ...], dims)) for tensor, dims in axes.items()},
        DEFAULTS=defaults,
        KEYS=_keys(config, settings, axes, shapes),
        LINEAR_IS_IN_OUT=any(isinstance(m, Conv1D) for m in meta_model(shortened(config)).modules()),
        ENCODER=not writes(config),
        PER_LAYER=_per_layer(config, settings.num_hidden_layers, defaults),
    )
    family = _with_head_dim(family, config)
    layout = laid_out(config, family)
    check_shapes(layout)
    if len(readers := layout.readers("ffn")) > layout.num_layers:
        raise InputError(f"a layer has more than one inner dimension: {', '.join(readers[:2])}")
    small = tiny(layout)
    check_shapes(small)
    family = replace(family, TINY=small.config, LIVE=live_names(small))
    return _tried_out(family, replace(small, family=cast(Family, family)))


def _tried_out(family: Derived, small: Layout) -> Derived:
    """Return the family with its particulars, after proof on a small model that its units are independent."""
    try:
        model = small_model(small)
        for axis in small.width_axes:
            check_order_is_free(small, model, axis)
        return replace(family, **vars(particulars(small, model)))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"a small model of it does not run: {error}") from error


def laid_out(config: Config, family: Derived) -> Layout:
    """Return the layout of a configuration under a derived family."""
    values = {**family.DEFAULTS, **config}
    sizes: dict[str, Any] = {size: values.get(key) for size, key in family.KEYS.items() if key is not None}
    sizes["num_kv_heads"] = sizes.get("num_kv_heads") or sizes["num_heads"]
    sizes["head_dim"] = sizes.get("head_dim") or sizes["hidden"] // sizes["num_heads"]
    if wrong := [f"{family.KEYS[size]}: {n!r}" for size, n in sizes.items() if type(n) is not int or n < 1]:
        raise InputError(f"its configuration has {', '.join(wrong)}, no positive whole number")
    return Layout(
        config=config, family=cast(Family, family), num_layers=sizes.pop("layers"), _keys=family.KEYS,
        **({"ffn": 0} | sizes),
    )  # fmt: skip


def _check_axes(axes: Mapping[str, Axes]) -> None:
    if unknown := [f"{name} (dimension {dims.index(None)})" for name, dims in axes.items() if None in dims]:
        few = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise InputError(f"it has dimensions that follow no axis known here: {few}")
    for name, dims in axes.items():
        if {"experts", "expert_ffn"} <= {part for dim in dims for part in flat(cast(Dim, dim))}:
            raise InputError(f"its experts are stored in one tensor, {name}")


def _keys(
    config: Config, settings: Any, axes: Mapping[str, Axes], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str | None]:
    """Return what the configuration calls each size the model has."""
    there = {part for dims in axes.values() for dim in dims for part in flat(cast(Dim, dim))}
    keys: dict[str, str | None] = {}
    for size, usual in KEYS.items():
        axis = SIZES.get(size)
        if (axis is not None and axis not in there) or (
            size == "experts_per_token" and "experts" not in there
        ):
            continue
        names = dict.fromkeys((*usual, *(settings.attribute_map.get(name, name) for name in usual)))
        known = [name for name in names if hasattr(settings, name)]
        declared = (name for where in (config, settings.to_dict()) for name in known if name in where)
        key = next(declared, known[0] if known else None)
        if axis is not None:
            key = _key_of(size, key, settings, _length(axis, axes, shapes))
        keys[size] = key
    return keys


def _key_of(size: str, usual: str | None, settings: Any, length: int) -> str:
    """Return the setting with this length: the usual one if it has it, else the only one that has."""
    if usual is not None and getattr(settings, usual) == length:
        return usual
    found = [name for name, value in settings.to_dict().items() if type(value) is int and value == length]
    if len(found) != 1:
        which = f"several settings: {', '.join(found)}" if found else "no setting"
        raise InputError(f"its {size} size, {length}, follows from {which}")
    return str(found[0])


def _length(axis: str, axes: Mapping[str, Axes], shapes: Mapping[str, tuple[int, ...]]) -> int:
    for name, dims in axes.items():
        shape = shapes.get(name.format(layer=0, expert=0))
        if shape is not None and axis in dims:
            return shape[dims.index(cast(Dim, axis))]
        if shape is not None:
            for dim, length in zip(dims, shape, strict=True):
                if isinstance(dim, tuple) and {*dim} == {axis}:
                    return length // len(dim)
    raise InputError(f"no tensor tells the length of its {axis} axis")


def _per_layer(config: Config, total: int, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings with an entry a layer that depend on the layer, or are written out in the configuration."""
    lists = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == total}
    return tuple(
        key
        for key, value in lists.items()
        if (key in config or len({*map(str, value)}) > 1)
        and key not in ("layer_types", "architectures")
        and not key.endswith("_token_id")
    )


def _with_head_dim(family: Derived, config: Config) -> Derived:
    """Return the family with the setting of the heads' dimension with which narrower models come out as predicted.

    Without one the heads divide the hidden size among them, so the two are pruned together. Some architectures read
    ``head_dim`` though their configuration does not declare it.
    """
    reason: InputError | None = None
    for key in dict.fromkeys((family.KEYS["head_dim"] or "head_dim", "head_dim", None)):
        for divides in (False, True):
            tried = replace(family, KEYS={**family.KEYS, "head_dim": key}, HEADS_DIVIDE_HIDDEN=divides)
            try:
                layout = laid_out(shortened(config), tried)
                for narrower in narrowings(layout):
                    check_shapes(narrower)
            except InputError as error:
                reason = error
            else:
                return tried
    raise reason or AssertionError


def live_names(layout: Layout) -> dict[str, str]:
    """Return stored -> live module names where one outside the layers differs. Raises `InputError` for others."""
    model = meta_model(layout.config)
    live = {name for name, _ in model.named_parameters()}
    stored = {name for name in layout.tensors if layout.expert_of(name) is None}
    prefixes = {
        name.partition(".experts.")[0] for name in layout.tensors if layout.expert_of(name) is not None
    }
    missing = {*(stored - live), *(prefix for prefix in prefixes if not _has_module(model, prefix))}
    unnamed = [name for name in live - stored if layout.layer_of(name) is None]
    if len(missing) == len(unnamed) == 1 and layout.layer_of(only := missing.pop()) is None:
        return {only.removesuffix(".weight"): unnamed[0].removesuffix(".weight")}
    if missing:
        raise InputError(f"it is stored under other names than its modules have: {min(missing)}")
    return {}


def _has_module(model: Any, name: str) -> bool:
    return any(module == name for module, _ in model.named_modules())
