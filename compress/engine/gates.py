"""Whether every leaf stayed within the quality the pipeline demands. Point estimates are compared."""

from collections.abc import Iterator
from typing import Protocol

from compress.records import GateResult, RunRecord, StepRecord


class Gates(Protocol):
    """The limits, as the pipeline's ``gates:`` section holds them; ``None`` is no limit."""

    @property
    def max_quality_drop(self) -> float | None: ...
    @property
    def min_accuracy(self) -> float | None: ...
    @property
    def max_kl_divergence(self) -> float | None: ...


def judge(record: RunRecord, gates: Gates) -> tuple[GateResult, ...]:
    """Return one result for every leaf and gate. A leaf whose figure was not measured fails its gate."""
    return tuple(
        result for leaf in record.leaves for result in _judge_leaf(record.step("original"), leaf, gates)
    )


def _judge_leaf(original: StepRecord, leaf: StepRecord, gates: Gates) -> Iterator[GateResult]:
    accuracy, reference = _figure(leaf, "mean_accuracy"), _figure(original, "mean_accuracy")
    drop = None if accuracy is None or reference is None else reference - accuracy
    checks = (
        ("max_quality_drop", gates.max_quality_drop, drop, 1),
        ("min_accuracy", gates.min_accuracy, accuracy, -1),
        ("max_kl_divergence", gates.max_kl_divergence, _figure(leaf, "kl_divergence"), 1),
    )
    for gate, limit, measured, sign in checks:
        if limit is not None:
            passed = measured is not None and sign * measured <= sign * limit
            yield GateResult(gate=gate, step=leaf.name, limit=limit, measured=measured, passed=passed)


def _figure(step: StepRecord, name: str) -> float | None:
    return next((m.value for m in step.measurements if m.name == name), None)
