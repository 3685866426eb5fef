"""What an item of a task scores, of the figures lm-eval gives it.

A task is judged by one figure of each of its items: a share between 0 and 1, of which more is better and which lm-eval
averages. Of accuracy and its kin (`USUAL`) the first is taken that there is, else the first the task declares. Where
answers are read out of a text in several ways (lm-eval's filters), the first is. Perplexities and the like are no such
shares: a task that has nothing else has no score. Which way is better is what the task declares, though not every task
declares what its authors mean: `pct_stereotype`, best near a half, is declared as better the lower, so it is no score.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import fmean
from typing import Any, NamedTuple

from lm_eval.api.task import Task

USUAL = ("acc", "acc_norm", "exact_match", "f1")
"""What is taken first, best first."""


GRADED = re.compile(r"acc|match|f1|\bem\b|pass@|mc[12]|rouge|bleu|anls|recall|precision|score", re.IGNORECASE)
"""Names of figures that may lie between right and wrong. Of others, nats that happen to be small would look so too."""


class Score(NamedTuple):
    """By what the items of a task's leaf are judged."""

    metric: str
    filter: str


def scores(logged: Sequence[tuple[str, dict[str, Any]]], leaves: Mapping[str, Task]) -> dict[str, Score]:
    """Return by what each leaf's items are judged; nothing for a leaf that has no score.

    logged: leaves' names and lm-eval's own log of their items.
    """
    values: dict[str, dict[Score, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for leaf, sample in logged:
        for metric in sample["metrics"]:
            values[leaf][Score(metric, sample["filter"])].append(sample[metric])
    found = {leaf: _chosen(by_score, leaves[leaf]) for leaf, by_score in values.items()}
    return {leaf: score for leaf, score in found.items() if score is not None}


def guessing(
    logged: Sequence[tuple[str, dict[str, Any]]], leaves: Mapping[str, Task], found: Mapping[str, Score]
) -> float | None:
    """Return what picking options at random scores on average over the items that are judged, 0 to 1.

    None where any of them offers no options to pick from.
    """
    judged = [each for each in logged if each[0] in found and each[1]["filter"] == found[each[0]].filter]
    if not judged or any(leaves[leaf].OUTPUT_TYPE != "multiple_choice" for leaf, _ in judged):
        return None
    return fmean(_guessed(leaves[leaf], sample["doc"], found[leaf].metric) for leaf, sample in judged)


def _guessed(task: Task, doc: Any, metric: str) -> float:
    """Return the mean of what the task itself gives for each option, were that alone likely.

    With one right answer of n it is 1/n; with several, or answers right in part, the task knows best.
    """
    n = len(task.doc_to_choice(doc))
    unconditional = [(0.0, False)] * n if "acc_mutual_info" in task.aggregation() else []
    picks = ([(0.0 if each == picked else -1e3, False) for each in range(n)] for picked in range(n))
    return fmean(float(task.process_results(doc, results + unconditional)[metric]) for results in picks)


def _chosen(values: Mapping[Score, Sequence[Any]], task: Task) -> Score | None:
    able = [score for score, each in values.items() if _is_share(score.metric, each, task)]
    order = {metric: place for place, metric in enumerate(USUAL)}
    return min(able, key=lambda score: order.get(score.metric, len(USUAL)), default=None)


def is_share(metric: str, values: Sequence[Any]) -> bool:
    """Whether the figures of items are shares: right or wrong, or, where the name says so, something between."""
    if not all(isinstance(value, Real) for value in values):
        return False
    return {*values} <= {0, 1} or (GRADED.search(metric) is not None and 0 <= min(values) <= max(values) <= 1)


def _is_share(metric: str, values: Sequence[Any], task: Task) -> bool:
    """Whether a metric is a mean of shares, of which more is better."""
    if not task.higher_is_better().get(metric, False):
        return False
    if not is_share(metric, values):
        return False
    aggregated = task.aggregation()[metric](list(values))
    return isinstance(aggregated, Real) and abs(float(aggregated) - sum(values) / len(values)) < 1e-9
