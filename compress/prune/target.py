"""From what a user asks for to the exact shape of the pruned model, before any weight is read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from compress.errors import InputError
from compress.models.layout import Layout, WidthAxis
from compress.quantities import format_count, parse_count

TOLERANCE = 0.01
"""How far above the asked number of parameters a shape may lie, as a fraction of it."""

MISS_WEIGHT = 10.0
"""One percent away from the asked number of parameters weighs as much as ten percent of unevenness."""

LARGEST_ALIGNMENT = 256

KEYS: dict[WidthAxis, str] = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "kv_groups": "num_key_value_heads",
}
"""The configuration's names for the sizes of the axes."""


def parse_budget(value: object) -> int | str:
    """Return a number of parameters, or a share of the parent's (``50%``). Raises `ValueError` for others."""
    if isinstance(value, str) and value.strip().endswith("%"):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())
        if match is None or not 0 < float(match[1]) <= 100:
            raise ValueError("expected a share above 0% and up to 100%, written like 50%")
        return f"{float(match[1]):g}%"
    try:
        return parse_count(value)
    except ValueError:
        raise ValueError("expected a number of parameters like 4.0B or 350M, or a share like 50%") from None


Budget = Annotated[
    int | str,
    BeforeValidator(parse_budget),
    WithJsonSchema({"anyOf": [
        {"type": "number", "minimum": 1},
        {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT%]?$"},
    ]}),
    Field(examples=["50%", "4.0B"]),
]  # fmt: skip
"""How many parameters the result may have: ``4.0B``, ``350M``, a whole number, or ``50%`` of the parent's."""


def layers_for(budget: int | str, model: Layout) -> int:
    """Return how many layers come nearest to a budget of parameters without exceeding it by over 1 %.

    Raises `InputError` when the embeddings and one layer are already too many.
    """
    wanted = _parameters(budget, model)
    sizes = {
        count: model.with_layers(range(count)).num_parameters for count in range(1, model.num_layers + 1)
    }
    if not (fitting := {n: size for n, size in sizes.items() if size <= wanted * (1 + TOLERANCE)}):
        raise InputError(
            f"target of {format_count(wanted)} parameters: one layer still makes {_size(sizes[1], model)}; "
            "raise the target or use prune.width"
        )
    return min(fitting, key=lambda count: abs(fitting[count] - wanted))


def shape_for(
    budget: int | str, model: Layout, axes: Sequence[WidthAxis], align: Mapping[WidthAxis, int]
) -> Layout:
    """Return the aligned shape that best fits a budget of parameters.

    Considered is every combination of sizes along `axes` that are multiples of their alignment (or the
    parent's own size), that transformers accepts, and that exceeds the budget by at most 1 %. The one with
    the least ``unevenness + 10 * |parameters / budget - 1|`` wins, the larger hidden size among equals.
    Unevenness is the difference between the largest and smallest kept fraction of an axis: shapes that lose
    about the same share everywhere keep the proportions the family was designed with, and recover better than
    lopsided ones.

    Raises `InputError` with the smallest reachable size when no shape is small enough.
    """
    wanted = _parameters(budget, model)
    candidates = [(shape, shape.num_parameters) for shape in _shapes(model, axes, align)]
    fitting = [(shape, size) for shape, size in candidates if size <= wanted * (1 + TOLERANCE)]
    if not fitting:
        smallest = min(size for _, size in candidates)
        raise InputError(
            f"target of {format_count(wanted)} parameters: pruning {', '.join(axes)} to aligned sizes leaves at "
            f"least {_size(smallest, model)}; raise the target, add axes, or use prune.depth first"
        )

    def cost(candidate: tuple[Layout, int]) -> tuple[float, int]:
        shape, size = candidate
        fractions = [shape.length(axis) / model.length(axis) for axis in axes]
        miss = abs(size / wanted - 1)
        return round(max(fractions) - min(fractions) + MISS_WEIGHT * miss, 9), -shape.hidden

    return min(fitting, key=cost)[0]


def explicit_shape(model: Layout, sizes: Mapping[WidthAxis, int]) -> Layout:
    """Return the shape with exactly these sizes. Raises `InputError` where it is larger or impossible."""
    for axis, size in sizes.items():
        if size > (parent := model.length(axis)):
            raise InputError(
                f"target {KEYS[axis]}: {size} is more than the parent's {parent}; pruning only removes"
            )
    shape = model.resized(
        hidden=sizes.get("hidden"), ffn=sizes.get("ffn"), num_kv_heads=sizes.get("kv_groups")
    )
    if shape.refusal is not None:
        raise InputError(f"target: {shape.refusal}")
    return shape


def default_alignment(axis: WidthAxis, length: int) -> int:
    """Return what sizes are multiples of unless the user says.

    Hidden and FFN sizes: the largest power of two up to 256 that is at most an eighth of the parent's size,
    so kernels stay fast on large models and small ones still have a choice. KV groups: 2 where there are 8 or
    more, so that the heads still divide over two devices.
    """
    if axis == "kv_groups":
        return 2 if length >= 8 and length % 2 == 0 else 1
    return min(LARGEST_ALIGNMENT, 1 << max(0, (length // 8).bit_length() - 1))


def _shapes(model: Layout, axes: Sequence[WidthAxis], align: Mapping[WidthAxis, int]) -> Iterator[Layout]:
    choices = {axis: _choices(model.length(axis), align.get(axis), axis) for axis in axes}
    for sizes in product(*choices.values()):
        by_axis = dict(zip(choices, sizes, strict=True))
        shape = model.resized(
            hidden=by_axis.get("hidden"), ffn=by_axis.get("ffn"), num_kv_heads=by_axis.get("kv_groups")
        )
        if shape.refusal is None:
            yield shape


def _choices(length: int, step: int | None, axis: WidthAxis) -> list[int]:
    step = step or default_alignment(axis, length)
    return sorted({*range(step, length, step), length})


def _parameters(budget: int | str, model: Layout) -> int:
    parent = model.num_parameters
    wanted = round(parent * float(budget[:-1]) / 100) if isinstance(budget, str) else budget
    if wanted > parent:
        raise InputError(
            f"target of {format_count(wanted)} parameters is more than the parent's {format_count(parent)}; "
            "pruning only removes"
        )
    return wanted


def _size(parameters: int, model: Layout) -> str:
    return f"{format_count(parameters)} parameters ({100 * parameters / model.num_parameters:.1f}% of the parent)"
