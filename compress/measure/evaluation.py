"""What lm-eval's log of a task says: each item's figures, and every metric with an interval of our own."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lm_eval.api.task import Task

from compress.measure.items import Item
from compress.measure.statistics import Interval, graded_interval, normal_interval, wilson_interval
from compress.meters.accuracy import Score, guessing, is_share, scores
from compress.meters.lm_eval_model import BackendLM
from compress.meters.tasks import Leaves, run_tasks
from compress.records import Measurement

UNITS = {"word_perplexity": "", "byte_perplexity": "", "perplexity": "", "bits_per_byte": "bits/byte"}
"""What lm-eval's own metrics are counted in. Others are shares where they are means, else plain scores."""


@dataclass(frozen=True)
class Answers:
    """One requested task, answered: its items, and every figure but accuracy (see `accuracy.py`)."""

    items: list[Item]
    figures: list[Measurement]
    scored: dict[str, Score]
    """By what the items of each leaf are judged."""
    guessing: float | None
    """What picking options at random scores; None where there are none to pick from."""


def answer(lm: BackendLM, name: str, leaves: Leaves, samples: int | None, as_chat: bool = False) -> Answers:
    """Let the model answer one requested task, asked as a chat or as plain text."""
    logged = run_tasks(lm, name, leaves, samples, as_chat=as_chat)
    items = [_item(name, leaf, sample) for leaf, sample in logged]
    task, scored = leaves[logged[0][0]], scores(logged, leaves)
    # What `accuracy` is of needs no second line.
    told = {metric for metric, _ in scored.values()} if len({*scored.values()}) == 1 else set[str]()
    figures = _figures(name, task, [sample for _, sample in logged], told & {"acc"})
    return Answers(items, figures, scored, guessing(logged, leaves, scored))


def _item(name: str, leaf: str, sample: dict[str, Any]) -> Item:
    metrics = {metric: sample[metric] for metric in sample["metrics"]}
    return Item(
        task=name,
        leaf=leaf,
        doc_id=sample["doc_id"],
        doc_hash=sample["doc_hash"],
        filter=sample["filter"],
        metrics={metric: float(value) for metric, value in metrics.items() if isinstance(value, Real)},
        log_probs=tuple(_log_probs(sample["filtered_resps"])),
    )


def _log_probs(responses: Sequence[Any]) -> list[float]:
    """Return the log-probability in each response, alone or before the greedy mark; written text has none."""
    heads = [response[0] if isinstance(response, tuple) else response for response in responses]
    return [float(head) for head in heads if isinstance(head, Real)]


def _figures(name: str, task: Task, samples: Sequence[dict[str, Any]], told: set[str]) -> list[Measurement]:
    """Return each of lm-eval's metrics over all items of a requested task but those told already, pooled."""
    pooled: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            if metric not in told:
                pooled[metric, sample["filter"]].append(sample[metric])
    return [_figure(name, task, metric, kept, values) for (metric, kept), values in pooled.items()]


def _interval(metric: str, values: list[Any]) -> Interval:
    """Return the interval of a mean; that of a share stays between 0 and 1."""
    if set(values) <= {0, 1}:
        return wilson_interval(int(sum(values)), len(values))
    return graded_interval(values) if is_share(metric, values) else normal_interval(values)


def _figure(name: str, task: Task, metric: str, kept: str, values: list[Any]) -> Measurement:
    aggregate: Callable[[list[Any]], float] = task.aggregation()[metric]
    value = float(aggregate(values))
    interval = None
    if all(isinstance(v, Real) for v in values) and abs(value - sum(values) / len(values)) < 1e-9:
        interval = _interval(metric, values)
    labels: dict[str, str | int] = {"task": name}
    if kept != "none":
        labels["filter"] = kept
    return Measurement(
        name=metric,
        value=value,
        unit=UNITS.get(metric, "share" if interval and is_share(metric, values) else ""),
        higher_is_better=bool(task.higher_is_better().get(metric, True)),
        labels=labels,
        n=len(values),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        note="by lm-eval",
    )
