"""How well tasks are answered, and how that changed, from items judged one by one.

An item is right or wrong, or right in part (`compress.meters.accuracy` says by which of lm-eval's figures): shares of
right answers have Wilson's interval and exact tests of pairs, means of graded ones Student's. A task without such a
figure counts in no accuracy, and the mean says that it leaves it out. The mean weighs every task alike.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

from compress.measure.items import Identity, Item
from compress.measure.statistics import (
    Interval,
    disagreements,
    graded_interval,
    mcnemar_exact,
    mean_interval,
    paired_difference_interval,
    paired_graded_interval,
    paired_t,
    wilson_interval,
)
from compress.records import Measurement

Scored = Mapping[str, Mapping[str, tuple[str, str]]]
"""Of each task, by which metric and filter the items of each of its leaves are judged."""
Answers = dict[Identity, float]
Pair = tuple[list[float], list[float]]


def accuracy_measurements(
    items: Sequence[Item],
    original: Sequence[Item] | None,
    scored: Scored,
    guessed: Mapping[str, float | None] = MappingProxyType({}),
) -> list[Measurement]:
    """Return `accuracy` a task and `mean_accuracy`; with the original's items also the paired changes.

    guessed: what guessing scores on each task where that is known; beside the mean it stands where it is of all tasks.
    """
    answers = {task: found for task in scored if (found := answered(items, task, scored))}
    measured = [
        _with_chance(measurement, answers, guessed)
        for measurement in _accuracies({task: list(each.values()) for task, each in answers.items()}, scored)
    ]
    if original is None or not answers:
        return measured
    pairs = {task: _paired(answered(original, task, scored), found) for task, found in answers.items()}
    pairs = {task: pair for task, pair in pairs.items() if pair[0]}
    beside = {task: sum(before) / len(before) for task, (before, _) in pairs.items()}
    return [_beside(m, beside) for m in measured] + _changes(pairs, scored)


def answered(items: Sequence[Item], task: str, scored: Scored) -> Answers:
    """Return the score of every item of a task, 0 to 1; nothing for a task without one."""
    found: Answers = {}
    for item in items:
        if item.task == task and scored[task].get(item.leaf, ("", ""))[1] == item.filter:
            metric = scored[task][item.leaf][0]
            if metric in item.metrics:
                found[item.identity] = item.metrics[metric]
    return found


def _accuracies(answers: dict[str, list[float]], scored: Scored) -> list[Measurement]:
    intervals = {task: share_interval(values) for task, values in answers.items()}
    measured = [
        _share(
            "accuracy", interval, len(answers[task]), {"task": task}, _by_what(answers[task], scored[task])
        )
        for task, interval in intervals.items()
    ]
    if intervals:
        n = sum(map(len, answers.values()))
        note = f"mean of {_tasks(len(intervals))}, each weighing alike{_left_out(answers, scored)}"
        measured.append(_share("mean_accuracy", mean_interval(list(intervals.values())), n, {}, note))
    return measured


def _with_chance(
    measurement: Measurement, answers: Mapping[str, object], guessed: Mapping[str, float | None]
) -> Measurement:
    """Add what guessing scores: on the task, or on average over all of them."""
    task = measurement.labels.get("task")
    levels = [guessed.get(name) for name in answers if task in (None, name)]
    known = [level for level in levels if level is not None]
    chance = fmean(known) if len(known) == len(levels) else None
    return measurement.model_copy(update={"chance": chance})


def share_interval(values: Sequence[float]) -> Interval:
    """Return the mean of scores with its 95 % interval: Wilson's where all are right or wrong, else Student's."""
    if is_graded(values):
        return graded_interval(values)
    return wilson_interval(int(sum(values)), len(values))


def is_graded(values: Sequence[float]) -> bool:
    """Whether any score is neither right (1) nor wrong (0)."""
    return not {*values} <= {0.0, 1.0}


def _by_what(values: Sequence[float], leaves: Mapping[str, tuple[str, str]]) -> str:
    metrics = " and ".join(sorted({metric for metric, _ in leaves.values()}))
    filters = sorted({kept for _, kept in leaves.values()} - {"none"})
    how = "graded, Student's interval" if is_graded(values) else "Wilson interval"
    return f"lm-eval {metrics}{f' ({chr(44).join(filters)})' if filters else ''}, {how}"


def _left_out(answers: Mapping[str, object], scored: Scored) -> str:
    without = [task for task in scored if task not in answers]
    return f"; leaves out {', '.join(without)}, which has no share of right answers" if without else ""


def _paired(before: Answers, after: Answers) -> Pair:
    """Return both models' scores of the items both have answered, in one order."""
    common = [identity for identity in after if identity in before]
    return [before[identity] for identity in common], [after[identity] for identity in common]


def _beside(measurement: Measurement, original: dict[str, float]) -> Measurement:
    """Add the original's figure: its accuracy on the task, or the mean over tasks."""
    task = measurement.labels.get("task")
    own = list(original.values()) if task is None else [v for name, v in original.items() if name == task]
    return (
        measurement.model_copy(update={"beside": {"original": sum(own) / len(own)}}) if own else measurement
    )


def _changes(pairs: dict[str, Pair], scored: Scored) -> list[Measurement]:
    """Return the change of each task's accuracy, of their mean, and how many answers flipped."""
    intervals: dict[str, Interval] = {}
    changes = []
    for task, pair in pairs.items():
        intervals[task], found = _change(task, pair)
        changes += found
    if intervals:
        n = sum(len(before) for before, _ in pairs.values())
        note = f"paired; mean of {_tasks(len(pairs))}, each weighing alike{_left_out(pairs, scored)}"
        changes.append(_share("mean_accuracy_change", mean_interval(list(intervals.values())), n, {}, note))
    return changes


def _change(task: str, pair: Pair) -> tuple[Interval, list[Measurement]]:
    """Return the paired change of one task, and its measurements: only what is right or wrong can flip."""
    before, after = pair
    labels: dict[str, str | int] = {"task": task}
    if is_graded(before) or is_graded(after):
        interval = paired_graded_interval(before, after)
        note = f"paired, graded; Student's p = {paired_t(before, after):.2g}"
        return interval, [_share("accuracy_change", interval, len(before), labels, note)]
    right = [value == 1 for value in before], [value == 1 for value in after]
    interval = paired_difference_interval(*right)
    gained, lost = disagreements(*right)
    note = f"paired; exact McNemar p = {mcnemar_exact(*right):.2g}"
    flips = wilson_interval(gained + lost, len(before))
    told = f"{lost} answers became wrong, {gained} became right"
    return interval, [
        _share("accuracy_change", interval, len(before), labels, note),
        _share("flips", flips, len(before), labels, told, higher_is_better=False),
    ]


def _tasks(number: int) -> str:
    return "one task" if number == 1 else f"{number} tasks"


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
