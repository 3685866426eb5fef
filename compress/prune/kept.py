"""Which units of a model stay, and which places of every tensor belong to them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.models.family import Axis, Dim
from compress.models.layout import Layout
from compress.prune.interface import Unit

PRUNING_MAP = "pruning_map.json"


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


def write_map(folder: Path, kept: Kept, scores: dict[Unit, Tensor], num_layers: int) -> None:
    """Write which units of the parent stayed, and what every unit scored.

    A kind that stayed whole is left out, so a model that lost nothing has an empty map.
    """
    units: dict[Unit, Tensor] = dict(kept.units)
    if len(kept.layers) < num_layers:
        units["layers"] = torch.tensor(kept.layers)
    content = {
        unit: {
            "kept": indices.tolist(),
            "scores": _rounded(scores[unit].tolist()) if unit in scores else None,
        }
        for unit, indices in units.items()
    }
    (folder / PRUNING_MAP).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _rounded(values: Any) -> Any:
    """Six significant digits tell ranks apart and keep the file small."""
    return [_rounded(v) for v in values] if isinstance(values, list) else float(f"{values:.6g}")
