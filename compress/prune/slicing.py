"""Cutting a checkpoint down to the units that stay, one tensor in memory at a time.

Which rows and columns belong to a unit is read from the family's table, so every tensor, of every family, is
cut by the same few lines. Files stay sharded as they were.

Norm gains grow when channels go (`compress.models.rescaling`). The head norms of Qwen3 read the same epsilon over
`head_dim`, which did not change: their output shrinks by a fraction ``(H/H' - 1)·eps / (2·mean(q²))``, about 1e-7.
Scaling q and k to undo it would round every weight by up to 4e-3 in bfloat16, so it is left.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.models.layerwise import Stored, StoredWeights
from compress.models.layout import Layout
from compress.models.rescaling import Scale, rescaled
from compress.models.shards import WEIGHTS, Shards, read_shards, write_shards
from compress.models.spec import copy_tokenizer
from compress.prune.kept import Kept
from compress.records import TensorSpec

Replacement = Callable[[str], Tensor | None]
"""Returns the tensor to write under a name instead of the parent's slice; ``None``: the slice."""


def write_pruned(
    source: Path,
    target: Path,
    before: Layout,
    after: Layout,
    kept: Kept,
    replacement: Replacement = lambda name: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the pruned checkpoint: weights, configuration, generation settings and tokenizer.

    progress: called with the bytes written so far, and all.
    """
    files = read_shards(source)
    sliced = SlicedWeights(StoredWeights(source), before, after, kept)
    shards = _new_files(files, sliced.origins, after)
    total = sum(spec.num_bytes for tensors in shards.values() for spec in tensors.values())
    written = 0

    def load(name: str) -> memoryview:
        nonlocal written
        tensor = replacement(name)
        tensor = sliced[name] if tensor is None else tensor
        data: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        written += data.nbytes
        progress(written, total)
        return data

    write_shards(target, shards, load)
    (target / "config.json").write_text(json.dumps(after.config, indent=2) + "\n", encoding="utf-8")
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
    copy_tokenizer(source, target)


class SlicedWeights:
    """The pruned model's tensors by their names in it, cut from the parent's when they are asked for."""

    def __init__(self, stored: Stored, before: Layout, after: Layout, kept: Kept) -> None:
        self.origins = parents_names(before, after, kept)
        self.becomes = {old: new for new, old in self.origins.items()}
        self._stored, self._before, self._kept = stored, before, kept
        self._scales = rescaled(before, after)

    def __getitem__(self, name: str) -> Tensor:
        old = self.origins[name]
        return cut(self._stored[old], old, self._before, self._kept, self._scales)


def cut(tensor: Tensor, name: str, layout: Layout, kept: Kept, scales: Mapping[str, Scale]) -> Tensor:
    """Return the parent's stored tensor with only what stays along each of its dimensions, and rescaled."""
    layer, expert = layout.layer_of(name), layout.expert_of(name)
    for number, dim in enumerate(layout.tensors[name]):
        positions = kept.along(dim, layer, expert, layout)
        if positions is not None:
            tensor = tensor.index_select(number, positions)
    if (scale := scales.get(name)) is not None:
        exact = (tensor.double() + scale.offset) * scale.factor - scale.offset
        tensor = exact.to(tensor.dtype)
    return tensor


def parents_names(before: Layout, after: Layout, kept: Kept) -> dict[str, str]:
    """Return, for every tensor of the pruned model, the parent's tensor it comes from."""
    new_layer = {old: new for new, old in enumerate(kept.layers)}
    names: dict[str, str] = {}
    for old in before.tensors:
        layer, expert, new = before.layer_of(old), before.expert_of(old), old
        if layer is not None:
            if layer not in new_layer:
                continue
            new = after.layers[new_layer[layer]] + old.removeprefix(before.layers[layer])
        if expert is not None and "experts" in kept.units:
            stays: list[int] = kept.units["experts"][layer].tolist()
            if expert not in stays:
                continue
            new = new.replace(f".experts.{expert}.", f".experts.{stays.index(expert)}.")
        names[new] = old
    return names


def _new_files(files: Shards, origins: Mapping[str, str], after: Layout) -> Shards:
    """Return the files to write: each parent file's tensors that stay, empty files left out."""
    shapes, new_names = after.shapes(), {old: new for new, old in origins.items()}
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
