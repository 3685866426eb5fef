"""Accuracy, and how it changed, from items answered one by one.

Accuracy is lm-eval's ``acc``: the option with the highest summed log-probability is the answer. A task that
has only ``acc_norm`` (divided by the option's length) gives that. The mean weighs every task alike.
"""

from collections.abc import Sequence

from compress.measure.items import Item
from compress.measure.statistics import (
    Interval,
    disagreements,
    mcnemar_exact,
    mean_interval,
    paired_difference_interval,
    wilson_interval,
)
from compress.meters.accuracy import accuracy_metric
from compress.records import Measurement


def accuracy_measurements(items: Sequence[Item], original: Sequence[Item] | None) -> list[Measurement]:
    """Return `accuracy` a task and `mean_accuracy`; with the original's items also the paired changes."""
    answers = {
        task: right for task in dict.fromkeys(i.task for i in items) if (right := answered(items, task))
    }
    measured = _accuracies({task: list(right.values()) for task, right in answers.items()}, items)
    if original is None or not answers:
        return measured
    pairs = {task: _paired(answered(original, task), right) for task, right in answers.items()}
    pairs = {task: pair for task, pair in pairs.items() if pair[0]}
    beside = {task: sum(before) / len(before) for task, (before, _) in pairs.items()}
    return [_beside(m, beside) for m in measured] + _changes(pairs)


def answered(items: Sequence[Item], task: str) -> dict[tuple[str, ...], bool]:
    """Return for every item of a task whether it was answered right; nothing for a task without accuracy."""
    own = [item for item in items if item.task == task]
    metric = _metric(own)
    return {i.identity: i.metrics[metric] == 1.0 for i in own if metric in i.metrics} if metric else {}


def _metric(items: Sequence[Item]) -> str | None:
    return accuracy_metric(item.metrics for item in items)


def _accuracies(answers: dict[str, list[bool]], items: Sequence[Item]) -> list[Measurement]:
    intervals = {task: wilson_interval(sum(right), len(right)) for task, right in answers.items()}
    measured = []
    for task, interval in intervals.items():
        metric = _metric([item for item in items if item.task == task])
        note = f"lm-eval {metric}, Wilson interval"
        measured.append(_share("accuracy", interval, len(answers[task]), {"task": task}, note))
    if intervals:
        n = sum(map(len, answers.values()))
        note = f"mean of {len(intervals)} tasks, each weighing alike"
        measured.append(_share("mean_accuracy", mean_interval(list(intervals.values())), n, {}, note))
    return measured


def _paired(
    before: dict[tuple[str, ...], bool], after: dict[tuple[str, ...], bool]
) -> tuple[list[bool], list[bool]]:
    """Return both models' answers to the items both have answered, in one order."""
    common = [identity for identity in after if identity in before]
    return [before[identity] for identity in common], [after[identity] for identity in common]


def _beside(measurement: Measurement, original: dict[str, float]) -> Measurement:
    """Add the original's figure: its accuracy on the task, or the mean over tasks."""
    task = measurement.labels.get("task")
    own = list(original.values()) if task is None else [v for name, v in original.items() if name == task]
    return (
        measurement.model_copy(update={"beside": {"original": sum(own) / len(own)}}) if own else measurement
    )


def _changes(pairs: dict[str, tuple[list[bool], list[bool]]]) -> list[Measurement]:
    """Return the change of each task's accuracy, of their mean, and how many answers flipped."""
    intervals = {task: paired_difference_interval(*pair) for task, pair in pairs.items()}
    changes = []
    for task, pair in pairs.items():
        gained, lost = disagreements(*pair)
        n = len(pair[0])
        labels: dict[str, str | int] = {"task": task}
        p = mcnemar_exact(*pair)
        changes.append(
            _share("accuracy_change", intervals[task], n, labels, f"paired; exact McNemar p = {p:.2g}")
        )
        flips = wilson_interval(gained + lost, n)
        note = f"{lost} answers became wrong, {gained} became right"
        changes.append(_share("flips", flips, n, labels, note, higher_is_better=False))
    if intervals:
        n = sum(len(before) for before, _ in pairs.values())
        note = f"paired; mean of {len(pairs)} tasks, each weighing alike"
        changes.append(_share("mean_accuracy_change", mean_interval(list(intervals.values())), n, {}, note))
    return changes


def _share(
    name: str,
    interval: Interval,
    n: int,
    labels: dict[str, str | int],
    note: str,
    higher_is_better: bool = True,
) -> Measurement:
    return Measurement(
        name=name,
        value=interval.value,
        unit="share",
        higher_is_better=higher_is_better,
        labels=labels,
        n=n,
        low=interval.low,
        high=interval.high,
        note=note,
    )
