"""What an importance metric is: a file in ``importance/`` that scores the units pruning can remove.

Units: ``layers``, ``hidden`` channels, ``ffn`` neurons, ``kv_groups`` (a key-value head with the query heads that
share it), ``heads`` inside their group, ``experts``, and ``expert_ffn`` neurons. The higher the score, the more the
unit matters; scores are compared only within one layer and kind (hidden channels and layers: within the model).

Planning asks a metric for its `UNITS`, so a metric's top level imports no torch.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, cast

from compress import plugins
from compress.errors import InputError
from compress.records import ModelSpec, Work

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

Unit = Literal["layers", "hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn"]

Scores = Mapping[Unit, "Tensor"]
"""fp64 on the CPU: layers ``[L]``, hidden ``[H]``, ffn ``[L, F]``, kv_groups ``[L, G]``, heads ``[L, G, h]``,
experts ``[L, E]``, expert_ffn ``[L, E, F]``."""


class Importance(Protocol):
    """A file in ``importance/``."""

    UNITS: tuple[Unit, ...]
    """What it can score. A model's units that are not among them get no score."""

    def score(self, calibration: "Calibration") -> "dict[Unit, Tensor]":
        """Return the scores of all units the model has and the metric knows. Called in inference mode.

        A metric that scores layers may also have ``keep(scores, count) -> list[int]``, which layers stay when `count`
        do; without it, those with the highest scores stay. ``TOKENS``: at most so many tokens are read.
        ``NEEDS_GRADIENT = True``: it is called outside inference mode. ``passes(spec, layers_left) -> float``: as
        how many forward passes it takes, where that is not one. ``beside(spec, tokens, layers_left) -> Work``: what
        it takes beside these. ``STOPS_EARLY = True``: it reads ``calibration.layers_left``, the number of layers that
        are to stay, and need not tell those apart.
        """


def needs_gradient(metric: Importance) -> bool:
    """Whether a metric differentiates."""
    return bool(getattr(metric, "NEEDS_GRADIENT", False))


def stops_early(metric: Importance) -> bool:
    """Whether a metric takes less time where fewer layers go."""
    return bool(getattr(metric, "STOPS_EARLY", False))


def passes_taken(metric: Importance, spec: ModelSpec, layers_left: int = 1) -> float:
    """Return as how many forward passes over the text a metric takes when so many layers are to stay."""
    passes = getattr(metric, "passes", None)
    return float(passes(spec, layers_left)) if passes else 1.0


def work_beside(metric: Importance, spec: ModelSpec, tokens: int, layers_left: int = 1) -> Work:
    """Return what a metric takes beside its passes."""
    beside = getattr(metric, "beside", None)
    work: Work = beside(spec, tokens, layers_left) if beside else Work()
    return work


def tokens_read(metric: Importance, asked: int) -> int:
    """Return how many of the tokens asked for a metric reads."""
    return min(asked, int(getattr(metric, "TOKENS", asked)))


def importance(name: str, units: Iterable[Unit]) -> Importance:
    """Return the metric of that name. Raises `InputError` when there is none or it scores other units."""
    metric = cast(Importance, plugins.load("prune.importance", name))
    if lacking := [unit for unit in units if unit not in metric.UNITS]:
        raise InputError(f"importance '{name}' scores {', '.join(metric.UNITS)}, not {', '.join(lacking)}")
    return metric
