"""A weighted sum of other divergences."""

import sys
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from compress.distill.divergences import chosen
from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """What to mix."""

    of: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Divergences, each with its ``use``, a ``weight`` (1 without), and settings of its own:
    ``[{use: forward_kl, weight: 0.7}, {use: jsd, beta: 0.1, weight: 0.3}]``."""

    @field_validator("of")
    @classmethod
    def _exist(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for part in parts:
            _weight(part)
            chosen(_unweighted(part))
        return parts


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return the weighted sum of the parts' losses ``[N]``, and of their gradients ``[N, V]``."""
    parts = []
    for part in config.of:
        module, settings = chosen(_unweighted(part))
        loss_N, slope_NV = module.divergence(student, teacher, settings)
        parts.append((_weight(part) * loss_N, slope_NV.mul_(_weight(part))))
    losses, slopes = zip(*parts, strict=True)
    return sum(losses[1:], losses[0]), sum(slopes[1:], slopes[0])


def _weight(part: dict[str, Any]) -> float:
    weight = part.get("weight", 1.0)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= sys.float_info.max:  # neither infinite nor NaN
        raise ValueError(f"`weight` must be a number above 0, found {weight!r}")
    return float(weight)


def _unweighted(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "weight"}
