"""Whether every leaf is proved to stay within the limits the pipeline demands.

Each limit has three answers (`compress.engine.evidence`): kept, lost, or not enough items to tell, however good the
figure looks. A margin is about the change from the original, paired where both answered or read the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Literal, Protocol

from compress.engine.evidence import Comparison, Figure, Finding, findings
from compress.records import GateResult, Measurement, RunRecord, StepRecord

PAIRED = {
    "accuracy": "accuracy_change",
    "mean_accuracy": "mean_accuracy_change",
    "perplexity": "perplexity_ratio",
    "bits_per_byte": "bits_per_byte_change",
    "time_per_output_token": "time_per_output_token_ratio",
}
"""Figures whose change from the original is measured pair by pair, and the measurement that holds it."""


ANY = object()
"""Any task."""


class Limit(Protocol):
    """One entry of ``gates: limits``: exactly one of `at_most`, `at_least` and `margin` is there."""

    @property
    def of(self) -> str: ...
    @property
    def task(self) -> str | None: ...
    @property
    def at_most(self) -> float | None: ...
    @property
    def at_least(self) -> float | None: ...
    @property
    def worse_by(self) -> float | None: ...
    @property
    def is_relative(self) -> bool: ...


class Gates(Protocol):
    """The limits, as the pipeline's ``gates:`` section holds them; ``None`` is no limit."""

    @property
    def max_quality_drop(self) -> float | None: ...
    @property
    def min_accuracy(self) -> float | None: ...
    @property
    def max_kl_divergence(self) -> float | None: ...
    @property
    def limits(self) -> Sequence[Limit]: ...


@dataclass(frozen=True)
class Question:
    """One limit of one leaf: how it is told, and what is compared; nothing where it was not measured."""

    gate: str
    step: str
    limit: float
    compared: Comparison | None = None
    sign: int = 1
    """What a turned figure is multiplied by for a reader."""
    shown: Figure | None = None
    """The turned figure for a reader, where it is compared on another scale."""
    unit: str = ""
    bound: Literal["at most", "at least", ""] = ""


def judge(record: RunRecord, gates: Gates) -> tuple[GateResult, ...]:
    """Return one result for every leaf and limit. A leaf whose figure was not measured fails its gate."""
    original = (
        next((step for step in record.steps if step.role == "original"), None) if gates.limits else None
    )
    asked = [
        question
        for leaf in record.leaves
        for question in (*_asked(leaf, gates), *_of_limits(leaf, original, gates.limits))
    ]
    words, num_tests = findings([each.compared for each in asked if each.compared is not None])
    found = iter(words)
    return tuple(_result(each, next(found) if each.compared else None, num_tests) for each in asked)


def _asked(leaf: StepRecord, gates: Gates) -> Iterator[Question]:
    """Yield the limits that have names of their own."""
    checks = (
        ("max_quality_drop", gates.max_quality_drop, "mean_accuracy_change", -1, 1),
        ("min_accuracy", gates.min_accuracy, "mean_accuracy", -1, -1),
        ("max_kl_divergence", gates.max_kl_divergence, "kl_divergence", 1, 1),
    )
    for gate, limit, name, sign, shown in checks:
        if limit is None:
            continue
        measurement = next((m for m in leaf.measurements if m.name == name), None)
        compared = Comparison(Figure.of(measurement, sign), shown * limit) if measurement else None
        yield Question(gate, leaf.name, limit, compared, shown)


def _of_limits(leaf: StepRecord, original: StepRecord | None, limits: Sequence[Limit]) -> Iterator[Question]:
    for limit in limits:
        named = [m for m in figures(leaf) if m.name == limit.of]
        # A task's own `bits_per_byte` is another figure than that of the text.
        wanted = limit.task if any("task" not in m.labels for m in named) else limit.task or ANY
        measured = [m for m in named if wanted in (ANY, m.labels.get("task"))]
        if not measured:
            of_task = f" of {limit.task}" if limit.task else ""
            bare = limit.at_most if limit.at_most is not None else limit.at_least
            yield Question(limit.of + of_task, leaf.name, (limit.worse_by if bare is None else bare) or 0.0)
        for measurement in measured:
            yield (
                _change(leaf, original, measurement, limit)
                if limit.worse_by is not None
                else _bare(leaf, measurement, limit)
            )


def figures(step: StepRecord) -> tuple[Measurement, ...]:
    """Return a step's measurements, its size among them."""
    size = Measurement(name="disk_bytes", value=step.disk_bytes, unit="bytes", higher_is_better=False)
    count = step.realized.num_parameters
    number = Measurement(name="parameters", value=count, unit="parameters", higher_is_better=False)
    return (*step.measurements, size, number)


def _bare(leaf: StepRecord, measurement: Measurement, limit: Limit) -> Question:
    """Ask whether a figure is on the right side of a limit."""
    name, unit = _name(measurement), measurement.unit
    if limit.at_most is not None:
        compared = Comparison(Figure.of(measurement), limit.at_most)
        return Question(name, leaf.name, limit.at_most, compared, unit=unit, bound="at most")
    assert limit.at_least is not None
    compared = Comparison(Figure.of(measurement, -1), -limit.at_least)
    return Question(name, leaf.name, limit.at_least, compared, -1, unit=unit, bound="at least")


def _change(
    leaf: StepRecord, original: StepRecord | None, measurement: Measurement, limit: Limit
) -> Question:
    """Ask whether a figure is worse than the original's by no more than a margin."""
    assert limit.worse_by is not None
    gate, sign = f"{_name(measurement)}, worse than the original", -1 if measurement.higher_is_better else 1
    unit = "share" if limit.is_relative else "points" if measurement.unit == "share" else measurement.unit
    before = original and _same(original, measurement.name, measurement)
    if not before or (limit.is_relative and before.value == 0):
        return Question(gate, leaf.name, limit.worse_by, unit=unit, bound="at most")
    scale = abs(before.value) if limit.is_relative else 1.0
    paired = _same(leaf, PAIRED.get(measurement.name, ""), measurement)
    if paired and paired.unit == "ratio":
        return _ratio(gate, leaf, paired, limit.worse_by * scale / before.value, before.value / scale, unit)
    change = (
        Figure.of(paired, sign) if paired else Figure.of(measurement, sign).minus(Figure.of(before, sign))
    ).mapped(lambda value: value / scale)
    return Question(
        gate, leaf.name, limit.worse_by, Comparison(change, limit.worse_by), unit=unit, bound="at most"
    )


def _ratio(
    gate: str, leaf: StepRecord, paired: Measurement, share: float, times: float, unit: str
) -> Question:
    """Ask it of a ratio to the original's figure, on the scale of logarithms: there its interval is Student's.

    share: by how much of the original's figure it may be larger. times: what turns such shares into the unit.
    """
    figure = Figure.of(paired)
    compared = Comparison(figure.mapped(_log), _log(1 + share))
    shown = figure.mapped(lambda ratio: (ratio - 1) * times)
    return Question(gate, leaf.name, share * times, compared, shown=shown, unit=unit, bound="at most")


def _log(ratio: float) -> float:
    return -inf if ratio <= 0 else inf if ratio == inf else log(ratio)


def _same(step: StepRecord, name: str, measurement: Measurement) -> Measurement | None:
    """Return a step's figure of that name, of the same task or profile."""
    return next((m for m in figures(step) if m.name == name and m.labels == measurement.labels), None)


def _name(measurement: Measurement) -> str:
    """Return a figure with what it is of: ``accuracy of arc_easy``."""
    of = ", ".join(
        str(value) if key == "task" else f"{key} {value}" for key, value in measurement.labels.items()
    )
    return f"{measurement.name} of {of}" if of else measurement.name


def _result(asked: Question, finding: Finding | None, num_tests: int) -> GateResult:
    result = GateResult(
        gate=asked.gate,
        step=asked.step,
        limit=asked.limit,
        measured=None,
        passed=False,
        finding="not measured",
        unit=asked.unit,
        bound=asked.bound,
    )
    if finding is None or asked.compared is None:
        return result
    figure = asked.shown or asked.compared.figure
    low, high = sorted((asked.sign * figure.low, asked.sign * figure.high))
    return result.model_copy(
        update={
            "measured": asked.sign * figure.value,
            "passed": finding == "kept",
            "finding": finding,
            "low": None if low == -inf else low,
            "high": None if high == inf else high,
            "n": figure.n,
            "enough_items": asked.compared.enough_items(num_tests) if finding == "not enough items" else None,
            "judged_at_once": num_tests,
        }
    )
