"""The methods that are compared: each prunes a teacher's folder to a budget and writes a checkpoint.

All read the same calibration rows, chosen by the seed. Budgets are shares of the teacher's parameters that stay,
embeddings included.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.models.checkpoint import load_model

from . import minitron
from .cutting import Cut, Shape, even_shape, heads_of, highest, whole, write
from .scoring import calibration_rows
from .steps import run_step
from .torchpruning import by_published_example, by_torch_pruning

VERSION = 1
"""Raised when a rival's result changes: its points are then taken again."""
SAMPLES = 512
"""Calibration rows: `compress` reads as many by default."""
JUDGED = 128
"""Of these, the rows a candidate's loss is taken on."""

Method = Callable[[Path, float, int, Path], dict[str, Any]]
"""``(teacher_folder, budget, seed, out_folder) -> facts``; the calibration tokens lie beside the teacher."""


def ours(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Prune by `prune.search` with its defaults: the shape is searched for, as Minitron's is."""
    return _by_step("prune.search", teacher_folder, budget, seed, out_folder)


def ours_even(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Prune by `prune` with its defaults: the shape follows from the configuration alone."""
    return _by_step("prune", teacher_folder, budget, seed, out_folder)


def _by_step(use: str, teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    settings = {"target": {"params": f"{budget:.0%}"}}
    inputs = {"calibration": teacher_folder.parent / "calibration"}
    return run_step(use, teacher_folder, out_folder, settings, seed=seed, inputs=inputs)


def by_minitron(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Prune by Minitron's recipe, its candidate search included."""
    model, rows_NT, found = _scored(teacher_folder, seed)
    cut, facts = minitron.search(model, found, budget, minitron.TOP_K, rows_NT[:JUDGED])
    return {**facts, **write(model, cut, teacher_folder, out_folder)}


def by_larger_minitron(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Prune by Minitron's recipe with three times its usual candidates: what more patience would bring."""
    model, rows_NT, found = _scored(teacher_folder, seed)
    cut, facts = minitron.search(model, found, budget, 3 * minitron.TOP_K, rows_NT[:JUDGED])
    return {**facts, **write(model, cut, teacher_folder, out_folder)}


def by_depth(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Remove whole layers by block influence, to the number of layers nearest the budget, above or below."""
    model, _, found = _scored(teacher_folder, seed)
    config = model.config.to_dict()
    full = Shape.of(config)
    wanted = budget * full.num_parameters(config)

    def miss(num_layers: int) -> float:
        shape = Shape(full.hidden, full.ffn, full.heads, full.groups, num_layers)
        return abs(shape.num_parameters(config) - wanted)

    kept = highest(found.layers, min(range(1, full.layers), key=miss)).tolist()
    cut = Cut(**{**vars(whole(config)), "layers": kept})
    return write(model, cut, teacher_folder, out_folder)


@lru_cache(maxsize=1)
def _scored(teacher_folder: Path, seed: int) -> tuple[PreTrainedModel, Tensor, minitron.Scores]:
    """Return the teacher, its calibration rows and Minitron's scores, once for all budgets."""
    model = load_model(teacher_folder)
    rows_NT = calibration_rows(teacher_folder.parent / "calibration", seed, SAMPLES)
    return model, rows_NT, minitron.scores(model, rows_NT)


def by_magnitude(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Keep the units with the largest weights (L2 norm of all that belong to one), in an even shape."""
    model = load_model(teacher_folder)
    config = model.config.to_dict()
    layers = [dict(block.named_parameters()) for block in model.base_model.layers]
    dim, groups = config["head_dim"], config["num_key_value_heads"]

    def attention(block: dict[str, Tensor]) -> Tensor:
        parts = [block[f"self_attn.{name}_proj.weight"] for name in "qkv"]
        parts.append(block["self_attn.o_proj.weight"].T)
        return sum(part.reshape(groups, -1).double().square().sum(1) for part in parts)  # type: ignore[return-value]

    def neurons(block: dict[str, Tensor]) -> Tensor:
        parts = [block["mlp.gate_proj.weight"], block["mlp.up_proj.weight"], block["mlp.down_proj.weight"].T]
        return sum(part.double().square().sum(1) for part in parts)  # type: ignore[return-value]

    with torch.no_grad():
        hidden = _hidden_energy(model.named_parameters(), config["hidden_size"], dim)
        scores = {
            "hidden": hidden,
            "ffn": torch.stack([neurons(block) for block in layers]),
            "groups": torch.stack([attention(block) for block in layers]),
        }
    return write(model, _even_cut(config, budget, scores), teacher_folder, out_folder)


def at_random(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Keep units drawn from the seed, in an even shape."""
    model = load_model(teacher_folder)
    config = model.config.to_dict()
    full, r = Shape.of(config), torch.Generator().manual_seed(seed)
    scores = {
        "hidden": torch.rand(full.hidden, generator=r),
        "ffn": torch.rand(full.layers, full.ffn, generator=r),
        "groups": torch.rand(full.layers, full.groups, generator=r),
    }
    return write(model, _even_cut(config, budget, scores), teacher_folder, out_folder)


def _even_cut(config: dict[str, Any], budget: float, scores: dict[str, Tensor]) -> Cut:
    full, shape = Shape.of(config), even_shape(config, budget)
    groups_LG = highest(scores["groups"], shape.groups)
    return Cut(
        layers=list(range(full.layers)),
        hidden=highest(scores["hidden"], shape.hidden),
        ffn=highest(scores["ffn"], shape.ffn),
        heads=heads_of(groups_LG, full.heads // full.groups),
        groups=groups_LG,
    )


def _hidden_energy(parameters: Any, hidden: int, head_dim: int) -> Tensor:
    """Return the squared weights of every hidden channel, over all tensors that have the axis: ``[H]``."""
    total = torch.zeros(hidden, dtype=torch.float64)
    for name, weight in parameters:
        if "q_norm" in name or "k_norm" in name:
            continue
        # Modules that write to the hidden state have it as rows, all others as their last axis.
        axis = 0 if name.endswith(("o_proj.weight", "down_proj.weight")) else weight.ndim - 1
        total += weight.movedim(axis, 0).reshape(hidden, -1).double().square().sum(1)
    return total


OURS = ("ours", "ours-even")
METHODS: dict[str, Method] = {
    "ours": ours,
    "ours-even": ours_even,
    "minitron": by_minitron,
    "minitron-30": by_larger_minitron,
    "depth": by_depth,
    "magnitude": by_magnitude,
    "random": at_random,
    "torch-pruning": by_torch_pruning,
    "torch-pruning-example": by_published_example,
}
