"""From what a user asks for to the exact shape of the pruned model, before any weight is read."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from compress.errors import InputError
from compress.models.layout import Layout
from compress.plugins import StepConfig
from compress.prune.interface import Unit
from compress.prune.shapes import (
    AT_ONCE,
    EXPERTS_MULTIPLE,
    KEYS,
    Shapes,
    default_alignment,
    length,
    shaped,
    sizes_along,
)
from compress.quantities import Count, format_count, parse_count

if TYPE_CHECKING:
    from compress.prune.shapes import Numbers

__all__ = ["KEYS", "Target", "default_alignment", "explicit_shape", "parse_budget", "shape_for"]

TOLERANCE = 0.01
"""How far above the asked cost a shape may lie, as a fraction of it."""

MISS_WEIGHT = 10.0
"""One percent away from the asked cost weighs as much as ten percent of unevenness."""

SHARE = r"(\d+(?:\.\d+)?)\s*%"
BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_budget(value: object) -> int | str:
    """Return a number of parameters, or a share of the parent's (``50%``). Raises `ValueError` for others."""
    if (share := _share(value)) is not None:
        return share
    try:
        return parse_count(value)
    except ValueError:
        raise ValueError("expected a number of parameters like 4.0B or 350M, or a share like 50%") from None


def parse_bytes(value: object) -> int | str:
    """Return a number of bytes (``6GB``, ``500 MiB``), or a share of the parent's. Raises `ValueError` for others."""
    if (share := _share(value)) is not None:
        return share
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(value).strip())
    if match is None or match[2].lower() not in BYTES or isinstance(value, bool) or float(match[1]) <= 0:
        raise ValueError("expected an amount of memory like 6GB or 500MiB, or a share like 50%")
    return round(float(match[1]) * BYTES[match[2].lower()])


def parse_milliseconds(value: object) -> float | str:
    """Return a time in milliseconds (``20ms``), or a share of the parent's. Raises `ValueError` for others."""
    if (share := _share(value)) is not None:
        return share
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*ms", str(value).strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError("expected a time for one token like 20ms, or a share like 50%")
    return float(match[1])


def _share(value: object) -> str | None:
    if not (isinstance(value, str) and value.strip().endswith("%")):
        return None
    match = re.fullmatch(SHARE, value.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError("expected a share above 0% and up to 100%, written like 50%")
    return f"{float(match[1]):g}%"


def _schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [
        {"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": pattern},
    ]})  # fmt: skip


Budget = Annotated[
    int | str,
    BeforeValidator(parse_budget),
    _schema(r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT%]?$"),
    Field(examples=["50%", "4.0B"]),
]
"""How many parameters, or FLOPs, the result may have: ``4.0B``, ``350M``, or ``50%`` of the parent's."""

ByteBudget = Annotated[
    int | str,
    BeforeValidator(parse_bytes),
    _schema(r"^\d+(\.\d+)?\s*([kKmMgG][iI]?[bB]|%)?$"),
    Field(examples=["6GB", "50%"]),
]
"""How many bytes the result may take: ``6GB``, ``500MiB``, or ``50%`` of the parent's."""

TimeBudget = Annotated[
    float | str,
    BeforeValidator(parse_milliseconds),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|%)$"}),
    Field(examples=["20ms", "50%"]),
]
"""How long one token may take: ``20ms``, or ``50%`` of the parent's."""

Size = Annotated[int, Field(ge=1)]


class Target(StepConfig):
    """How small: one budget, for which the shape is chosen, or exact sizes (what is not named stays)."""

    params: Budget | None = None
    """``50%`` of the parent's parameters, ``4.0B``, ``350M`` or a whole number."""
    memory: ByteBudget | None = None
    """``6GB``, ``500MiB`` or ``50%`` of the parent's: weights as stored, and the KV cache of one sequence of `context`
    tokens in 16 bits."""
    flops: Budget | None = None
    """``50%`` of the parent's, or a number such as ``8B``: floating-point operations for one token that attends to
    `context` tokens."""
    latency: TimeBudget | None = None
    """``20ms`` or ``50%`` of the parent's: time for one output token after `context` tokens, batch 1, measured on the
    machine that prunes."""
    context: Count = 1024
    """Tokens in the context for `memory`, `flops` and `latency`."""
    layers: Size | None = None
    """Layers that stay."""
    hidden_size: Size | None = None
    """Width of the residual stream."""
    intermediate_size: Size | None = None
    """FFN neurons of every layer."""
    num_key_value_heads: Size | None = None
    """KV groups of every layer; query heads follow in the parent's ratio."""
    num_attention_heads: Size | None = None
    """Query heads of every layer, the same number in each KV group."""
    num_experts: Size | None = None
    """Experts of every layer."""
    moe_intermediate_size: Size | None = None
    """Neurons of every expert."""

    @property
    def sizes(self) -> dict[Unit, int]:
        """The sizes asked for, by axis."""
        asked = {axis: getattr(self, key) for axis, key in KEYS.items()}
        return {axis: size for axis, size in asked.items() if size is not None}

    @property
    def budget(self) -> tuple[str, Any]:
        """Which cost is limited, and to what."""
        return next((name, getattr(self, name)) for name in BUDGETS if getattr(self, name) is not None)

    @property
    def is_explicit(self) -> bool:
        return bool(self.sizes)

    @model_validator(mode="after")
    def _one(self) -> "Target":
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) + bool(self.sizes) != 1:
            raise ValueError(
                f"give either one of {', '.join(f'`{name}`' for name in BUDGETS)}, or sizes: "
                + ", ".join(KEYS.values())
            )
        return self


BUDGETS = ("params", "memory", "flops", "latency")


def shape_for(
    target: Target,
    model: Layout,
    axes: Sequence[Unit],
    align: Mapping[Unit, int],
    *,
    dtype_bytes: float = 2,
    milliseconds: "Numbers | None" = None,
) -> Layout:
    """Return the aligned shape that best fits a budget.

    Considered is every combination of sizes along `axes` that are multiples of their alignment (or the
    parent's own size), that transformers accepts, and that exceeds the budget by at most 1 %. The one with
    the least ``unevenness + 10 * |cost / budget - 1|`` wins, the larger hidden size among equals.
    Unevenness is the difference between the largest and smallest kept fraction of an axis: shapes that lose
    about the same share everywhere keep the proportions the family was designed with, and recover better than
    lopsided ones.

    Raises `InputError` with the smallest reachable size when no shape is small enough.
    """
    shapes = possible_shapes(model, axes, align)
    costs, whole, wanted = costs_of(target, shapes, dtype_bytes, milliseconds)
    fits = fitting(costs, wanted)
    if not fits.any():
        raise InputError(_too_small(target, axes, float(costs.min()), whole, wanted))
    import numpy as np

    fractions = shapes.fractions()
    miss = np.abs(costs / wanted - 1)
    price = np.round(fractions.max(0) - fractions.min(0) + MISS_WEIGHT * miss, 9)
    hidden = shapes.fractions()[shapes.axes.index("hidden")] if "hidden" in shapes.axes else 0.0 * price
    best = min(np.flatnonzero(fits), key=lambda i: (price[i], -hidden[i]))
    return shapes.layout(int(best))


def possible_shapes(model: Layout, axes: Sequence[Unit], align: Mapping[Unit, int]) -> Shapes:
    """Return every aligned shape along the axes. Raises `InputError` for an axis the model does not have."""
    there: tuple[Unit, ...] = ("layers", *model.width_axes)
    if absent := [axis for axis in axes if axis not in there]:
        raise InputError(
            f"{model.config['model_type']} models have no {' or '.join(absent)} to prune. "
            f"Allowed: {', '.join(there)}"
        )
    return Shapes(model, {axis: sizes_along(model, axis, align.get(axis)) for axis in axes})


def costs_of(
    target: Target, shapes: Shapes, dtype_bytes: float, milliseconds: "Numbers | None" = None
) -> tuple["Numbers", float, float]:
    """Return every shape's cost in the budget's unit, the parent's cost, and the budget.

    Latency is taken from `milliseconds` where it was measured, else assumed proportional to the bytes read a token.
    Raises `InputError` for a budget above the parent's cost.
    """
    name, asked = target.budget

    def of(these: Shapes) -> "Numbers":
        if name == "params":
            return these.params()
        if name == "memory":
            return these.memory(dtype_bytes, target.context)
        return (
            these.flops(target.context)
            if name == "flops"
            else these.decode_bytes(dtype_bytes, target.context)
        )

    parent = Shapes(shapes.model, {"layers": [shapes.model.num_layers]})
    costs, whole = of(shapes), float(of(parent)[0])
    if name == "latency" and milliseconds is not None:
        costs, whole = milliseconds[:-1], float(milliseconds[-1])
    elif name == "latency" and not isinstance(asked, str):
        return costs, whole, whole  # nothing is measured yet: the plan assumes the parent's own
    wanted = whole * float(asked[:-1]) / 100 if isinstance(asked, str) else float(asked)
    if wanted > whole:
        raise InputError(
            f"target of {amount(name, wanted)} is more than the parent's {amount(name, whole, short=True)}; "
            "pruning only removes"
        )
    return costs, whole, wanted


def fitting(costs: "Numbers", wanted: float) -> "Numbers":
    """Return which costs stay within the budget and its tolerance."""
    within: Numbers = costs <= wanted * (1 + TOLERANCE)
    return within


def explicit_shape(model: Layout, sizes: Mapping[Unit, int]) -> Layout:
    """Return the shape with exactly these sizes. Raises `InputError` where it is larger or impossible."""
    for axis, size in sizes.items():
        parent = model.num_heads if axis == "heads" else length(model, axis)
        if axis not in ("layers", "heads", *model.width_axes) and size != parent:
            raise InputError(
                f"target {KEYS[axis]}: {model.config['model_type']} models have none of their own"
            )
        if size > parent:
            raise InputError(
                f"target {KEYS[axis]}: {size} is more than the parent's {parent}; pruning only removes"
            )
    lengths = dict(sizes)
    if (heads := lengths.pop("heads", None)) is not None:
        lengths |= _heads(model, heads, lengths.get("kv_groups"))
    shape = shaped(model, lengths)
    if shape.refusal is not None:
        raise InputError(f"target: {shape.refusal}")
    for axis in AT_ONCE if model.num_experts else ():
        if (size := length(shape, axis)) % EXPERTS_MULTIPLE and size != length(model, axis):
            raise InputError(
                f"target {KEYS[axis]}: {size} is no multiple of {EXPERTS_MULTIPLE}, which transformers needs to "
                "multiply all experts at once"
            )
    return shape


def _heads(model: Layout, heads: int, groups: int | None) -> dict[Unit, int]:
    """Return the KV groups, and the query heads in each, that a number of query heads in a layer means."""
    if groups is None:  # where every head has its own keys and values, they go with it
        groups = heads if model.heads_per_group == 1 else model.num_kv_heads
    if heads % groups:
        raise InputError(
            f"target num_attention_heads: {heads} is no multiple of the {groups} key-value heads"
        )
    if heads // groups > model.heads_per_group:
        raise InputError(
            f"target num_attention_heads: {heads} for {groups} key-value heads is {heads // groups} each, more than "
            f"the parent's {model.heads_per_group}; pruning only removes"
        )
    return {"kv_groups": groups, "heads": heads // groups}


def amount(name: str, value: float, short: bool = False) -> str:
    """Return a cost with its unit."""
    if name == "latency":
        return f"{value:.3g} ms a token"
    if name == "memory":
        return f"{value / 1e9:.3g} GB"
    return format_count(value) + ("" if short else {"params": " parameters", "flops": " FLOPs"}[name])


def _too_small(target: Target, axes: Sequence[Unit], least: float, whole: float, wanted: float) -> str:
    name, _ = target.budget
    if tuple(axes) == ("layers",):
        what, hint = "one layer still makes", "raise the target or use prune.width"
    else:
        what = f"pruning {', '.join(axes)} to aligned sizes leaves at least"
        hint = "raise the target, add axes, or use prune.depth first"
    reached = f"{amount(name, least)} ({100 * least / whole:.1f}% of the parent)"
    return f"target of {amount(name, wanted)}: {what} {reached}; {hint}"
