"""Chance: the control any other metric has to beat. Needs no data."""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit
from compress.records import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("layers", "hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")


def passes(spec: ModelSpec, layers_left: int = 1) -> float:
    """No text is read."""
    return 0.0


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return a random score of every unit, by the step's seed."""
    import torch

    from compress.prune.parts import empty_scores

    generator = torch.Generator().manual_seed(calibration.seed)
    return {
        unit: torch.rand(values.shape, generator=generator, dtype=torch.float64)
        for unit, values in empty_scores(calibration.layout).items()
    }
