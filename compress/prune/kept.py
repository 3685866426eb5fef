"""Which units of a model stay, and which places of every tensor belong to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.models import pruning_map
from compress.models.family import Axis, Dim
from compress.models.layout import Layout
from compress.models.pruning_map import Part
from compress.prune.interface import Unit
from compress.prune.shapes import length


@dataclass(frozen=True)
class Kept:
    """Ascending indices of what stays, by the parent's numbering; a missing kind stays whole.

    layers ``[L']``; hidden ``[H']``; of every layer of the parent: ffn ``[L, F']``, kv_groups ``[L, G']``, heads of
    each group that stays ``[L, G', h']``, experts ``[L, E']``; expert_ffn of every expert ``[L, E, F']``.
    """

    layers: Sequence[int]
    units: dict[Unit, Tensor] = field(default_factory=dict)

    def along(self, dim: Dim, layer: int | None, expert: int | None, layout: Layout) -> Tensor | None:
        """Return the positions of a dimension that stay in a layer's (expert's) tensor, or ``None`` for all."""
        if isinstance(dim, tuple):
            return self._concatenated(dim, layer, expert, layout)
        if dim == "hidden":
            return self.units.get("hidden")
        if layer is None:
            return None
        if dim == "expert_ffn" and "expert_ffn" in self.units:
            return self.units["expert_ffn"][layer, expert]
        if dim in ("ffn", "experts") and dim in self.units:
            return self.units[dim][layer]
        return self._of_heads(dim, layer, layout)

    def _of_heads(self, dim: Axis, layer: int, layout: Layout) -> Tensor | None:
        if dim not in ("query", "key_value", "heads_qkv") or not {"kv_groups", "heads"} & self.units.keys():
            return None
        groups = (
            self.units["kv_groups"][layer] if "kv_groups" in self.units else torch.arange(layout.num_kv_heads)
        )
        if dim == "key_value":
            return spread(groups, layout.head_dim)
        if dim == "heads_qkv":
            return spread(groups, 3 * layout.head_dim)
        inside = self.units["heads"][layer] if "heads" in self.units else torch.arange(layout.heads_per_group)
        heads = (groups[:, None] * layout.heads_per_group + inside).flatten()
        return spread(heads, layout.head_dim)

    def _concatenated(
        self, dims: tuple[Axis, ...], layer: int | None, expert: int | None, layout: Layout
    ) -> Tensor | None:
        parts = [self.along(dim, layer, expert, layout) for dim in dims]
        if all(part is None for part in parts):
            return None
        places, start = [], 0
        for dim, part in zip(dims, parts, strict=True):
            places.append(start + (torch.arange(layout.size(dim)) if part is None else part))
            start += layout.size(dim)
        return torch.cat(places)


def spread(units: Tensor, width: int) -> Tensor:
    """Return the positions of units that each own `width` consecutive places."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def top(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the `count` highest scores along the last axis; the first of equals win."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def write_map(parent: Path, folder: Path, kept: Kept, scores: Mapping[Unit, Tensor], before: Layout) -> None:
    """Write which units stayed, by the numbering of the first ancestor, and what every unit of the parent scored.

    before: the parent's layout. A kind that stayed whole is left out.
    """
    parts: dict[str, Part] = {}
    for unit, indices in kept.units.items():
        parts[unit] = _part(_of_what_stays(unit, indices, kept), length(before, unit), scores.get(unit))
    if len(kept.layers) < before.num_layers:
        parts["layers"] = _part(torch.tensor(kept.layers), before.num_layers, scores.get("layers"))
    pruning_map.write_map(parent, folder, kept.layers, parts)


def _of_what_stays(unit: Unit, indices: Tensor, kept: Kept) -> Tensor:
    """Return the entries of the layers, and of the experts, that stay."""
    if unit == "hidden":
        return indices
    indices = indices[list(kept.layers)]
    if unit == "expert_ffn" and "experts" in kept.units:
        experts_LE = kept.units["experts"][list(kept.layers)]
        indices = indices.take_along_dim(experts_LE[..., None], dim=1)
    return indices


def _part(kept: Tensor, of: int, scores: Tensor | None) -> Part:
    return Part(kept.tolist(), of, None if scores is None else _rounded(scores.tolist()))


def _rounded(values: Any) -> Any:
    """Six significant digits tell ranks apart, and keep the file small; JSON has no infinity, which means: stays."""
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return float(f"{values:.6g}") if isfinite(values) else None
