"""Pruning a real model along one axis or all, by our own steps and by Minitron's recipe, to the same sizes.

A share is of the parameters outside embedding and head, which in a small model with a large vocabulary are most of
all, and which no axis but the hidden one touches. Along one axis both methods are given the same shape, the one whose
share is nearest. A search is given a number of parameters in all, the whole embedding among them: whoever narrows the
hidden state may spend what the embedding no longer takes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens
from compress.models.checkpoint import save_model
from compress.models.layout import layout
from compress.models.spec import read_spec

from . import minitron
from .cutting import Cut, Shape, cut_model
from .heldout import load, mean_loss
from .steps import run_step

AXES = ("ffn", "hidden", "layers", "search")
KEYS = {"ffn": "intermediate_size", "hidden": "hidden_size", "layers": "layers"}
"""What our steps call an axis in their target."""
JUDGED_SHARE = 1 / 4
"""Of the calibration rows, those that a candidate of Minitron's search is judged on."""
STEPS = 60
"""Of `reconstruct` for each layer: about four times over the calibration rows."""
VERSION = 1
"""Raised when the rival's result changes: its points are then taken again."""

Method = Callable[[Path, Path, str, float, int, Path], dict[str, Any]]
"""``(model, calibration, axis, share, seed, out_folder) -> facts``."""


def ours(
    model: Path, calibration: Path, axis: str, share: float, seed: int, out_folder: Path
) -> dict[str, Any]:
    """Prune by the project's own step for the axis, with its defaults."""
    return _by_own_step(model, calibration, axis, share, seed, out_folder)


def reconstructed(
    model: Path, calibration: Path, axis: str, share: float, seed: int, out_folder: Path
) -> dict[str, Any]:
    """Prune by the project's own step, each layer then trained to end where the original's ends."""
    return _by_own_step(model, calibration, axis, share, seed, out_folder, reconstruct=STEPS)


def _by_own_step(
    model: Path, calibration: Path, axis: str, share: float, seed: int, out_folder: Path, **settings: Any
) -> dict[str, Any]:
    config = read_spec(model).config
    use = {"layers": "prune.depth", "search": "prune.search"}.get(axis, "prune.width")
    if axis == "search":
        target = {"params": budget(config, share)}
    else:
        target = {KEYS[axis]: getattr(shape_at(config, axis, share), axis)}
    inputs = {"calibration": calibration}
    return run_step(use, model, out_folder, {"target": target, **settings}, seed=seed, inputs=inputs)


def by_minitron(
    model: Path, calibration: Path, axis: str, share: float, seed: int, out_folder: Path
) -> dict[str, Any]:
    """Prune by Minitron's scores: activations for widths, block influence for layers, its own search for all."""
    parent, rows_NT, found = _scored(model, calibration)
    config, facts = read_spec(model).config, dict[str, Any]()
    if axis == "search":
        whole = Shape.of(config).num_parameters(config)
        judged_NT = rows_NT[: max(1, round(JUDGED_SHARE * len(rows_NT)))]
        cut, facts = minitron.search(
            parent,
            found,
            budget(config, share) / whole,
            minitron.TOP_K,
            judged_NT,
            steps=steps(config),
            loss=mean_loss,
        )
    else:
        cut = minitron.choose(found, shape_at(config, axis, share), config)
    _write(parent, cut, model, out_folder)
    return {**facts, "shape": vars(cut.shape), "kept_layers": cut.layers}


METHODS: dict[str, Method] = {"ours": ours, "reconstructed": reconstructed, "minitron": by_minitron}
RIVAL = "minitron"


def shape_at(config: dict[str, Any], axis: str, share: float) -> Shape:
    """Return the shape, smaller along one axis, whose share of the parameters outside the embedding is nearest."""
    full = Shape.of(config)
    sizes = range(1, full.layers) if axis == "layers" else _multiples(axis, config)
    wanted = share * num_inside(full, config)
    shapes = [replace(full, **{axis: size}) for size in sizes]
    loadable = [shape for shape in shapes if shape.is_loadable(config)]
    return min(loadable, key=lambda shape: abs(num_inside(shape, config) - wanted))


def budget(config: dict[str, Any], share: float) -> int:
    """Return how many parameters a model has in all that keeps its embedding and this share of the rest."""
    full = Shape.of(config)
    inside = num_inside(full, config)
    return full.num_parameters(config) - round((1 - share) * inside)


def num_inside(shape: Shape, config: dict[str, Any]) -> int:
    """Return the number of parameters outside embedding and head."""
    cut = layout(shape.config(config))
    matrices = 1 if cut.tied else 2
    return cut.num_parameters - matrices * cut.vocab * cut.hidden


def steps(config: dict[str, Any]) -> dict[str, int]:
    """Return what sizes are multiples of: a power of two, about as coarse for the model as Model-Optimizer's."""
    most = {"hidden": config["hidden_size"] // 16, "ffn": config["intermediate_size"] // 24}
    return {axis: 1 << (size.bit_length() - 1) for axis, size in most.items()}


def _multiples(axis: str, config: dict[str, Any]) -> range:
    step = steps(config)[axis]
    return range(step, getattr(Shape.of(config), axis), step)


@lru_cache(maxsize=1)
def _scored(model: Path, calibration: Path) -> tuple[PreTrainedModel, Tensor, minitron.Scores]:
    """Return the model, its calibration rows and Minitron's scores, once for all axes and shares."""
    parent, tokens = load(model), PackedTokens.open(calibration)
    rows_NT = tokens.rows(0, tokens.num_sequences)
    return parent, rows_NT, minitron.scores(parent, rows_NT)


def _write(parent: PreTrainedModel, cut: Cut, model: Path, out_folder: Path) -> None:
    """Write the cut model in the dtype that the parent is stored in, as our steps do."""
    stored = {spec.dtype for spec in read_spec(model).tensors.values()}
    dtype = torch.bfloat16 if stored == {"BF16"} else torch.float32
    out_folder.mkdir(parents=True, exist_ok=True)
    save_model(cut_model(parent, cut).to(dtype), out_folder, like=model)
