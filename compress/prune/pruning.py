"""From a shape and scores to a pruned checkpoint: what all pruning steps do when they run."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.models.graph import check_against
from compress.models.layerwise import LayerwiseModel, Weights
from compress.models.layout import Layout, is_known, layout
from compress.models.spec import read_spec
from compress.plugins import Context
from compress.prune.calibration import Calibration, is_resident, open_calibration, read_batches
from compress.prune.compensation import Compensation, Strength
from compress.prune.interface import Importance, Unit
from compress.prune.kept import Kept, top, write_map
from compress.prune.reconstruction import Reconstruction
from compress.prune.scratch import Scratch
from compress.prune.settings import SCORES, CompensationSettings
from compress.prune.shapes import KEYS, length
from compress.prune.slicing import write_pruned
from compress.records import Artifact, JsonValue, Outcome

__all__ = ["Calibration", "choose", "open_calibration", "prune_to", "read_scores", "with_chosen_layers"]


def prune_to(
    parent: Artifact,
    after: Layout,
    scores: Mapping[Unit, Tensor],
    layer_metric: Importance | None,
    settings: CompensationSettings,
    context: Context,
) -> Outcome:
    """Write the parent cut to a shape, its best units kept, and ``pruning_map.json``.

    after: a layout whose layers are the first of the parent's; which ones stay is decided here, by the scores.
    """
    assert parent.spec is not None
    before = layout(parent.spec.config)
    if is_known(parent.spec.config):  # a family without a file was derived from the graph itself
        check_against(before)
    kept = choose(before, after, scores, layer_metric)
    if len(kept.layers) < before.num_layers:
        after = with_chosen_layers(before, after, kept.layers)
    is_smaller = after.num_parameters < before.num_parameters
    refitted: Weights = {}
    if settings.compensate and is_smaller:
        refitted = _compensate(parent, before, after, kept, settings, context)
    write_pruned(parent.path, context.folder, before, after, kept, refitted.get)
    write_map(parent.path, context.folder, kept, scores, before)
    axes: tuple[Unit, ...] = ("layers", *before.width_axes)
    facts: dict[str, JsonValue] = {
        KEYS[axis]: length(after, axis) if axis != "heads" else after.num_heads for axis in axes
    }
    if len(kept.layers) < before.num_layers:
        facts["removed_layers"] = sorted(set(range(before.num_layers)) - set(kept.layers))
    return Outcome(spec=read_spec(context.folder), facts=facts)


def choose(
    before: Layout, after: Layout, scores: Mapping[Unit, Tensor], layer_metric: Importance | None = None
) -> Kept:
    """Return the best-scored units that make the shape."""
    axes: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups", "experts", "expert_ffn")
    units: dict[Unit, Tensor] = {
        axis: top(scores[axis], length(after, axis))
        for axis in axes
        if length(after, axis) < length(before, axis)
    }
    if after.heads_per_group < before.heads_per_group:
        heads_LGh = scores["heads"]
        if "kv_groups" in units:
            heads_LGh = heads_LGh.take_along_dim(units["kv_groups"][:, :, None], dim=1)
        units["heads"] = top(heads_LGh, after.heads_per_group)
    layers: Sequence[int] = range(before.num_layers)
    if after.num_layers < before.num_layers:
        keep = getattr(layer_metric, "keep", None)
        found = (
            keep(scores["layers"], after.num_layers)
            if keep
            else top(scores["layers"], after.num_layers).tolist()
        )
        layers = found
    return Kept(layers, units)


def read_scores(context: Context, *names: str) -> dict[Unit, Tensor]:
    """Return the scores in the artifacts under these names of the context's inputs, those that are there."""
    found: dict[Unit, Tensor] = {}
    for name in names:
        if name in context.inputs:
            found |= cast(dict[Unit, Tensor], load_file(context.inputs[name].path / SCORES))
    return found


def _compensate(
    parent: Artifact,
    before: Layout,
    after: Layout,
    kept: Kept,
    settings: CompensationSettings,
    context: Context,
) -> Weights:
    """Return the refitted tensors by their names in the pruned model. What a killed run had done is not done again."""
    from compress.models.device import default_device

    device = default_device()
    resident = is_resident(parent.path, settings.memory, device)
    model = LayerwiseModel.open(parent.path, before, device=device, resident=resident)
    batches = read_batches(context, settings.tokens, device)
    scratch = Scratch(None if resident else context.partial, device)
    parts: list[str] = []

    def heed() -> None:
        if context.stopping:
            context.stop()

    def saved(part: str) -> Weights | None:
        parts.append(part)
        path = context.partial / f"{part}.safetensors"
        return load_file(path) if path.is_file() else None

    def save(part: str, weights: Weights) -> None:
        path = context.partial / f"{part}.safetensors"
        save_file({name: w.cpu().contiguous() for name, w in weights.items()}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
        heed()

    with torch.no_grad():  # and not in inference mode: what a layer is called with goes into gradients, too
        compensation = Compensation(
            model, after, kept, batches, scratch, Strength(), settings.reconstruct, heed
        )
        compensation.run(save, saved, lambda done, total: context.progress(done, total, "layers"))
    _tell_of_reconstruction(compensation.reconstruction, after.num_layers, context)
    refitted: Weights = {}
    for part in parts:
        refitted |= load_file(context.partial / f"{part}.safetensors")
    return refitted


def _tell_of_reconstruction(reconstruction: Reconstruction | None, num_layers: int, context: Context) -> None:
    """Warn where training layers brought nothing: the result is that of least squares."""
    if reconstruction is None:
        return
    if not reconstruction.has_enough_text:
        context.warn(
            "reconstruct: one calibration sequence is for judging, and there is no other: nothing was trained"
        )
    elif reconstruction.num_trained == num_layers and not reconstruction.num_nearer:
        context.warn(
            f"reconstruct: none of {num_layers} trained layers came nearer to the original's on text held back; all "
            "stay as they were refitted: more calibration text or other steps may help"
        )


def with_chosen_layers(before: Layout, after: Layout, layers: Sequence[int]) -> Layout:
    """Return the narrow layout with these layers of the parent, so that each keeps its attention type."""
    lengths = {axis: after.length(axis) for axis in before.width_axes}
    return before.to_lengths(lengths).with_layers(layers)
