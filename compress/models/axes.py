"""The axes of every stored tensor, read off the labels of a traced model.

An axis is a group whose channels a dimension has in order; several axes are several groups one after another (a fused
``qkv_proj``). Stored tensors are not always the live ones (experts are stored one by one), so transformers' own
conversion is applied to the labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from compress.models.dependencies import Graph
from compress.models.family import Axis, Dim
from compress.models.labels import CHANNELS, Labels, Root, generalised, unlabelled

Axes = tuple[Dim | None, ...]
"""The axes of a tensor's dimensions; ``None``: along no axis that is known."""


def read_axes(graph: Graph, model: Any) -> dict[str, Axes]:
    """Return the axes of every stored tensor, ``{layer}`` and ``{expert}`` standing for any number.

    Where layers or experts differ in a dimension, it is along no axis.
    """
    labels = Labels(graph, model)
    table: dict[str, Axes] = {}
    for name, dims in _stored(labels).items():
        generic, layer = generalised(name, labels.prefix)
        axes = tuple(_decode(dim, labels.roots, layer, labels.head_dim) for dim in dims)
        known = table.setdefault(generic, axes)
        table[generic] = tuple(a if a == b else None for a, b in zip(known, axes, strict=True))
    return table


def _stored(labels: Labels) -> dict[str, list[Tensor]]:
    """Return the labels of every dimension of every stored tensor: those of one live dimension after another."""
    stored: dict[str, list[Tensor]] = {}
    passes: list[set[str]] = []
    for dim in range(max(map(len, labels.of.values()))):
        spread = {labels.names[p]: _spread(dims, min(dim, len(dims) - 1)) for p, dims in labels.of.items()}
        converted = revert_weight_conversion(labels.model, spread)
        passes.append({*converted})
        for name, tensor in converted.items():
            dims = stored.setdefault(name, [unlabelled(0)] * tensor.dim())
            for place in range(tensor.dim()):
                varies = bool((tensor != tensor.narrow(place, 0, 1)).any())
                if varies or (tensor.shape[place] == 1 and not len(dims[place])):
                    dims[place] = tensor.movedim(place, 0).reshape(tensor.shape[place], -1)[:, 0]
    everywhere = set.intersection(*passes)  # all experts only where the dimension of experts was spread
    return {name: dims for name, dims in stored.items() if name in everywhere}


def _spread(dims: list[Tensor], dim: int) -> Tensor:
    """Return a tensor whose places along `dim` hold its labels; two places along each other dimension do."""
    shape, view = [2] * len(dims), [1] * len(dims)
    shape[dim] = view[dim] = len(dims[dim])
    return dims[dim].view(view).expand(shape).contiguous()


def _decode(labels: Tensor, roots: Sequence[Root], layer: int | None, head_dim: int) -> Dim | None:
    """Return the axis, or the axes one after another, whose channels in order the labels are."""
    if not len(labels) or bool((labels < 0).any()):
        return None  # along no axis, in part along one, or along two at once
    numbers = labels // CHANNELS
    used = [roots[n] for n in dict.fromkeys(numbers.tolist())]
    if any(root.layer not in (None, layer) for root in used):
        return None
    if _interleaved(labels, roots, used, head_dim):
        return "heads_qkv"
    axes: list[Axis] = []
    place = 0
    while place < len(labels):
        number = int(numbers[place])
        size = roots[number].size
        if not torch.equal(labels[place : place + size], number * CHANNELS + torch.arange(size)):
            return None
        axes.append(roots[number].axis)
        place += size
    return axes[0] if len(axes) == 1 else tuple(axes)


def _interleaved(labels: Tensor, roots: Sequence[Root], used: Sequence[Root], head_dim: int) -> bool:
    """Whether query, key and value of every head follow each other, head by head."""
    if [root.role for root in used] != ["query", "key", "value"] or len({root.size for root in used}) > 1:
        return False
    starts = [roots.index(root) * CHANNELS for root in used]
    expected = torch.stack([start + torch.arange(used[0].size).view(-1, head_dim) for start in starts], 1)
    return len(expected) > 1 and torch.equal(labels, expected.reshape(-1))
