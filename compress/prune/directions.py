"""Which shapes to try along each axis by itself, so that all others can be foretold from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.models.layout import Layout
from compress.prune.interface import Unit
from compress.prune.shapes import Shapes, length, sizes_along
from compress.prune.target import fitting

if TYPE_CHECKING:
    from compress.prune.shapes import Numbers

PROBES = 3
"""Sizes tried along an axis."""

LEAST_SHARE = 0.25
"""No axis is tried below this share, unless the even shape already keeps less of it."""

Costs = Callable[[Shapes], tuple["Numbers", float, float]]
"""Returns every shape's cost, the parent's, and the budget."""


@dataclass(frozen=True)
class Direction:
    """An axis that can shrink by itself, and the shapes to try: what stays, largest first."""

    axis: Unit
    probes: tuple[dict[Unit, int], ...]

    @property
    def smallest(self) -> int:
        return self.probes[-1][self.axis]


def directions(
    model: Layout, axes: Sequence[Unit], align: Mapping[Unit, int], even: Layout, costs: Costs
) -> list[Direction]:
    """Return every axis with a smaller possible size, and sizes from near the whole to the least worth trying.

    That is the size which meets the budget with nothing else cut, where there is one. The hidden size of models whose
    heads make it up is no direction of its own: it follows them.
    """
    found = []
    for axis in axes:
        shapes = Shapes(model, _sizes(model, axis, axes, align))
        order = _smaller_first_to_last(shapes, model, axis)
        if not order:
            continue
        amounts, _, wanted = costs(shapes)
        within = fitting(amounts, wanted)
        reach = next((place for place, index in enumerate(order) if within[index]), len(order) - 1)
        floor = min(LEAST_SHARE, length(even, axis) / length(model, axis)) * length(model, axis)
        worth = [i for i in order[: reach + 1] if shapes.lengths(i)[axis] >= floor] or order[:1]
        found.append(Direction(axis, tuple(_spread(shapes, worth, model, axis))))
    return found


def _sizes(
    model: Layout, axis: Unit, axes: Sequence[Unit], align: Mapping[Unit, int]
) -> dict[Unit, list[int]]:
    """Return the sizes along one axis, and along the hidden size where that has to follow."""
    moving: list[Unit] = [axis]
    if model.heads_fill_hidden and axis in ("kv_groups", "heads") and "hidden" in axes:
        moving.append("hidden")
    return {each: sizes_along(model, each, align.get(each)) for each in moving}


def _smaller_first_to_last(shapes: Shapes, model: Layout, axis: Unit) -> list[int]:
    """Return the shapes that are smaller along the axis, from the largest to the smallest."""
    sizes = [shapes.lengths(index)[axis] for index in range(len(shapes))]
    smaller = [index for index, size in enumerate(sizes) if size < length(model, axis)]
    return sorted(smaller, key=lambda index: -sizes[index])


def _spread(shapes: Shapes, worth: Sequence[int], model: Layout, axis: Unit) -> list[dict[Unit, int]]:
    """Return about `PROBES` of the shapes, the removed share of the last divided evenly."""
    whole = length(model, axis)
    most = whole - shapes.lengths(worth[-1])[axis]
    places = [most * number / PROBES for number in range(1, PROBES + 1)]
    nearest = {min(worth, key=lambda i: abs(whole - shapes.lengths(i)[axis] - place)) for place in places}
    ordered = sorted(nearest, key=lambda i: -shapes.lengths(i)[axis])
    return [{each: n for each, n in shapes.lengths(i).items() if n < length(model, each)} for i in ordered]
