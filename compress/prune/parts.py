"""Which numbers of a stored tensor belong to which units, read from the family's table."""

from collections.abc import Iterator

import torch
from torch import Tensor

from compress.models.family import Axis
from compress.models.layout import Layout
from compress.prune.interface import Unit

Index = int | tuple[int, ...] | slice


def empty_scores(layout: Layout) -> dict[Unit, Tensor]:
    """Return zeros, fp64, for all units a model has."""
    num_layers, groups, heads = layout.num_layers, layout.num_kv_heads, layout.heads_per_group
    shapes: dict[Unit, tuple[int, ...]] = {
        "layers": (num_layers,),
        "hidden": (layout.hidden,),
        "ffn": (num_layers, layout.ffn),
        "kv_groups": (num_layers, groups),
        "heads": (num_layers, groups, heads),
        "experts": (num_layers, layout.num_experts),
        "expert_ffn": (num_layers, layout.num_experts, layout.expert_ffn),
    }
    there = {"layers", *layout.width_axes}
    return {unit: torch.zeros(shape, dtype=torch.float64) for unit, shape in shapes.items() if unit in there}


def unit_sums(layout: Layout, name: str, values: Tensor) -> Iterator[tuple[Unit, Index, Tensor]]:
    """Yield unit, which part of its scores, and the sum of `values` for each unit, fp64.

    values: shaped like the stored tensor; they are summed in fp64 whatever they are.
    """
    layer, expert = layout.layer_of(name), layout.expert_of(name)
    if layer is not None:
        yield "layers", layer, values.sum(dtype=torch.float64)
    for number, dim in enumerate(layout.tensors[name]):
        others = [other for other in range(values.dim()) if other != number]
        along = values.sum(others, dtype=torch.float64) if others else values.double()
        start = 0
        for axis in dim if isinstance(dim, tuple) else (dim,):
            stop = start + layout.size(axis)
            yield from _of_axis(layout, axis, layer, expert, along[start:stop])
            start = stop


def reading_maps(layout: Layout, number: int) -> list[str]:
    """Return the stored weights of a layer that read the hidden state, experts' included."""
    return [
        name
        for name, axes in layout.tensors.items()
        if layout.layer_of(name) == number and len(axes) == 2 and axes[1 - layout.out_dim(name)] == "hidden"
    ]


def _of_axis(
    layout: Layout, axis: Axis, layer: int | None, expert: int | None, sums: Tensor
) -> Iterator[tuple[Unit, Index, Tensor]]:
    if axis == "hidden":
        yield "hidden", slice(None), sums
    elif layer is None:
        return
    elif axis == "ffn":
        yield "ffn", layer, sums
    elif axis == "experts":
        yield "experts", layer, sums
    elif axis == "expert_ffn" and expert is not None:
        yield "expert_ffn", (layer, expert), sums
        yield "experts", (layer, expert), sums.sum()
    elif axis in ("query", "key_value", "heads_qkv"):
        yield "kv_groups", layer, sums.reshape(layout.num_kv_heads, -1).sum(1)
        if axis == "query" and layout.heads_per_group > 1:
            per_head = sums.reshape(layout.num_kv_heads, layout.heads_per_group, -1).sum(-1)
            yield "heads", layer, per_head
