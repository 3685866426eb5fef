"""Whether every leaf is proved to stay within the quality the pipeline demands.

A limit is kept where the whole 95 % interval of what was measured lies inside it, and lost where it lies outside: so of
students that break the limit at most one in forty is called good, and the other way round. In between nothing is
proved, however good the figure looks, and more items are what it takes (equivalence testing: Schuirmann 1987).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal, Protocol

from compress.records import GateResult, Measurement, RunRecord, StepRecord


class Gates(Protocol):
    """The limits, as the pipeline's ``gates:`` section holds them; ``None`` is no limit."""

    @property
    def max_quality_drop(self) -> float | None: ...
    @property
    def min_accuracy(self) -> float | None: ...
    @property
    def max_kl_divergence(self) -> float | None: ...


@dataclass(frozen=True)
class Figure:
    """What a gate looks at, turned so that more is worse, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int | None

    @classmethod
    def of(cls, measurement: Measurement | None, sign: int) -> "Figure | None":
        """Return a measurement times `sign`; a figure without an interval is taken as exact."""
        if measurement is None:
            return None
        value = measurement.value
        bounds = (
            value if measurement.low is None else measurement.low,
            value if measurement.high is None else measurement.high,
        )
        low, high = sorted(sign * bound for bound in bounds)
        return cls(sign * value, low, high, measurement.n)


def judge(record: RunRecord, gates: Gates) -> tuple[GateResult, ...]:
    """Return one result for every leaf and gate. A leaf whose figure was not measured fails its gate."""
    return tuple(result for leaf in record.leaves for result in _judge_leaf(leaf, gates))


def _judge_leaf(leaf: StepRecord, gates: Gates) -> Iterator[GateResult]:
    checks = (
        ("max_quality_drop", gates.max_quality_drop, "mean_accuracy_change", -1, 1),
        ("min_accuracy", gates.min_accuracy, "mean_accuracy", -1, -1),
        ("max_kl_divergence", gates.max_kl_divergence, "kl_divergence", 1, 1),
    )
    for gate, limit, name, sign, shown in checks:
        if limit is None:
            continue
        figure = Figure.of(next((m for m in leaf.measurements if m.name == name), None), sign)
        yield _result(gate, leaf.name, limit, figure, shown)


def _result(gate: str, step: str, limit: float, figure: Figure | None, shown: int) -> GateResult:
    """Return the result. `shown`: what the turned figure and limit are multiplied by for a reader."""
    if figure is None:
        return GateResult(
            gate=gate, step=step, limit=limit, measured=None, passed=False, finding="not measured"
        )
    finding = _finding(figure, shown * limit)
    low, high = sorted((shown * figure.low, shown * figure.high))
    return GateResult(
        gate=gate,
        step=step,
        limit=limit,
        measured=shown * figure.value,
        passed=finding == "kept",
        finding=finding,
        low=low,
        high=high,
        n=figure.n,
        enough_items=_enough(figure, shown * limit) if finding == "not enough items" else None,
    )


def _finding(figure: Figure, limit: float) -> Literal["kept", "lost", "not enough items"]:
    if figure.high <= limit:
        return "kept"
    return "lost" if figure.low > limit else "not enough items"


def _enough(figure: Figure, limit: float) -> int | None:
    """Return how many items bring the interval's end to the limit: widths shrink as one over the root of n."""
    room = limit - figure.value
    if room <= 0 or not figure.n:
        return None
    return ceil(figure.n * ((figure.high - figure.value) / room) ** 2)
