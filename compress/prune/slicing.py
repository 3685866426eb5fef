"""Cutting a checkpoint down to the units that stay, one tensor in memory at a time.

Which rows and columns belong to a unit is read from the family's table, so every tensor, of every family, is
cut by the same few lines. Files stay sharded as they were.

When hidden channels go (H -> H'), norm gains are multiplied by ``sqrt(H/H')`` and epsilon by ``H/H'``: a norm
divides by the mean square over *all* channels, and removed channels, the least active, leave the sum nearly
as it was. Removing channels that are always zero is then exact. The head norms of Qwen3 read the same epsilon
over `head_dim`, which did not change: their output shrinks by a fraction ``(H/H' - 1)·eps / (2·mean(q²))``,
about 1e-7. Scaling q and k to undo it would round every weight by up to 4e-3 in bfloat16, so it is left.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.models.layout import Axis, Layout
from compress.models.shards import WEIGHTS, Shards, read_shards, write_shards
from compress.models.spec import copy_tokenizer
from compress.prune.interface import Unit
from compress.records import TensorSpec

PRUNING_MAP = "pruning_map.json"


@dataclass(frozen=True)
class Kept:
    """Ascending indices of what stays, by the parent's numbering; a missing kind stays whole.

    layers ``[L']``; hidden ``[H']``; ffn ``[L, F']`` and kv_groups ``[L, G']`` for every layer of the parent.
    """

    layers: Sequence[int]
    units: dict[Unit, Tensor]

    def along(self, axis: Axis, layer: int | None, layout: Layout) -> Tensor | None:
        """Return the positions of an axis that stay in a layer's tensor, or ``None`` for all."""
        if axis == "hidden":
            return self.units.get("hidden")
        unit: Unit = "ffn" if axis == "ffn" else "kv_groups"
        if axis in ("vocab", "head_dim") or layer is None or unit not in self.units:
            return None
        width = {"ffn": 1, "key_value": layout.head_dim, "query": layout.heads_per_group * layout.head_dim}[
            axis
        ]
        starts = self.units[unit][layer, :, None] * width
        return (starts + torch.arange(width)).flatten()


def top(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the `count` highest scores along the last axis; the first of equals win."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def write_pruned(source: Path, target: Path, before: Layout, after: Layout, kept: Kept) -> None:
    """Write the pruned checkpoint: weights, configuration, generation settings and tokenizer."""
    files = read_shards(source)
    names = _old_names(before, after, kept)
    stored_in = {tensor: file for file, tensors in files.items() for tensor in tensors}
    gain = math.sqrt(before.hidden / after.hidden)
    scaled = {f"{name}.weight" for name in before.norms} if after.hidden != before.hidden else set()
    axes = before.tensors
    with ExitStack() as stack:
        opened: dict[str, Any] = {
            file: stack.enter_context(safe_open(source / file, framework="pt")) for file in files
        }

        def load(name: str) -> bytes:
            old = names[name]
            tensor: Tensor = opened[stored_in[old]].get_tensor(old)
            tensor = cut(tensor, axes[old], before.layer_of(old), before, kept)
            if old in scaled:
                tensor = (tensor.double() * gain).to(tensor.dtype)
            return tensor.contiguous().view(torch.uint8).numpy().tobytes()

        write_shards(target, _new_files(files, names, after), load)
    (target / "config.json").write_text(json.dumps(after.config, indent=2) + "\n", encoding="utf-8")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
    copy_tokenizer(source, target)


def cut(tensor: Tensor, axes: Sequence[Axis], layer: int | None, layout: Layout, kept: Kept) -> Tensor:
    """Return the tensor with only what stays along each of its axes."""
    for dim, axis in enumerate(axes):
        positions = kept.along(axis, layer, layout)
        if positions is not None:
            tensor = tensor.index_select(dim, positions)
    return tensor


def write_map(folder: Path, kept: dict[Unit, Tensor], scores: dict[Unit, Tensor]) -> None:
    """Write which units of the parent stayed, and what every unit scored."""
    content = {
        unit: {
            "kept": indices.tolist(),
            "scores": _rounded(scores[unit].tolist()) if unit in scores else None,
        }
        for unit, indices in kept.items()
    }
    (folder / PRUNING_MAP).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _old_names(before: Layout, after: Layout, kept: Kept) -> dict[str, str]:
    """Return, for every tensor to write, the parent's tensor it comes from."""
    renumbered = {before.layers[old]: after.layers[new] for new, old in enumerate(kept.layers)}
    names: dict[str, str] = {}
    for old in before.tensors:
        layer = before.layer_of(old)
        if layer is None:
            names[old] = old
        elif (prefix := before.layers[layer]) in renumbered:
            names[renumbered[prefix] + old.removeprefix(prefix)] = old
    return names


def _new_files(files: Shards, names: dict[str, str], after: Layout) -> Shards:
    """Return the files to write: each parent file's tensors that stay, empty files left out."""
    shapes, new_names = after.shapes(), {old: new for new, old in names.items()}
    cut_files = [
        {
            new_names[old]: TensorSpec(shape=shapes[new_names[old]], dtype=spec.dtype)
            for old, spec in tensors.items()
            if old in new_names
        }
        for tensors in files.values()
    ]
    filled = [tensors for tensors in cut_files if tensors]
    if len(filled) == 1:
        return {WEIGHTS: filled[0]}
    count = len(filled)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": tensors
        for number, tensors in enumerate(filled, start=1)
    }


def _rounded(values: Any) -> Any:
    """Six significant digits tell ranks apart and keep the file small."""
    return [_rounded(v) for v in values] if isinstance(values, list) else float(f"{values:.6g}")
