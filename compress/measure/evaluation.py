"""Running lm-eval tasks: which ones, on which items, and what each answer was.

lm-eval renders the prompts and judges the answers; choosing items, batching and intervals are ours. Of every
task the same items are used for every model: a seeded choice, sorted, over all leaves of a group alike.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from random import Random
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from compress.data.tasks import demo_task_configs
from compress.errors import InputError, nearest
from compress.measure.items import Item
from compress.measure.statistics import normal_interval, wilson_interval
from compress.meters.lm_eval_model import BackendLM
from compress.records import Measurement

UNITS = {"word_perplexity": "", "byte_perplexity": "", "perplexity": "", "bits_per_byte": "bits/byte"}
"""What lm-eval's own metrics are counted in. Others are shares where they are means, else plain scores."""

Leaves = dict[str, Task]


@dataclass(frozen=True)
class Answers:
    """One requested task, answered: its items, and every figure but accuracy (see `accuracy.py`)."""

    items: list[Item]
    figures: list[Measurement]


def load_tasks(names: Sequence[str], demo_folder: Path | None, task_folder: Path | None) -> dict[str, Leaves]:
    """Return the lm-eval tasks behind each name (a group has several).

    A name is looked up in the demonstration tasks, then in the user's folder, then in what lm-eval ships; its
    own index takes seconds to read, so only when it is needed. Raises `InputError` for an unknown name and
    for data that cannot be had.
    """
    demo = {str(config["task"]): config for config in demo_task_configs(demo_folder)} if demo_folder else {}
    manager = TaskManager(include_path=task_folder and str(task_folder), include_defaults=False)
    if any(name not in demo and name not in manager.all_tasks for name in names):
        manager = TaskManager(include_path=task_folder and str(task_folder))
    for name in names:
        if name not in (known := [*demo, *manager.all_tasks]):
            raise InputError(f"no task is called '{name}'{nearest(name, known)}")
    return {name: _load(manager, name, demo.get(name, name)) for name in names}


def prepare_few_shot(leaves: Leaves, few_shot: int | None) -> None:
    """Set the number of solved examples; `None` keeps each task's own.

    Raises `InputError` where the examples would be test items.
    """
    for name, task in leaves.items():
        if few_shot is not None:
            task.set_config(key="num_fewshot", value=few_shot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        if task.get_config("num_fewshot") > 0 and not _has_own_examples(task):
            raise InputError(
                f"task '{name}' has no fewshot_split or training split: few-shot examples would be test "
                "items, answers included. Give it a fewshot_split, or set few_shot: 0"
            )
        task.set_fewshot_seed(seed=0)


def choose_items(sizes: Mapping[str, int], samples: int | None, name: str) -> dict[str, list[int]]:
    """Return the sorted indices of the chosen items of every leaf that has any; no chance but the name's."""
    everything = [(leaf, index) for leaf, size in sizes.items() for index in range(size)]
    if samples is not None and samples < len(everything):
        places = sorted(Random(f"items of {name}").sample(range(len(everything)), samples))
        everything = [everything[place] for place in places]
    chosen: dict[str, list[int]] = defaultdict(list)
    for leaf, index in everything:
        chosen[leaf].append(index)
    return dict(chosen)


def answer(lm: BackendLM, name: str, leaves: Leaves, samples: int | None) -> Answers:
    """Let the model answer one requested task."""
    sizes = {leaf: len(task.eval_docs) for leaf, task in leaves.items()}
    chosen = choose_items(sizes, samples, name)
    used = {leaf: leaves[leaf] for leaf in chosen}
    # lm-eval looks every index up in the list: where all items are used, give it none.
    partial = {leaf: indices for leaf, indices in chosen.items() if len(indices) < sizes[leaf]}
    results = evaluate(lm=lm, task_dict={"tasks": used}, samples=partial, bootstrap_iters=0, log_samples=True)
    logged = [(leaf, sample) for leaf, samples in results["samples"].items() for sample in samples]
    items = [_item(name, leaf, sample) for leaf, sample in logged]
    return Answers(items, _figures(name, next(iter(used.values())), [sample for _, sample in logged]))


def _load(manager: TaskManager, name: str, source: str | dict[str, Any]) -> Leaves:
    try:
        leaves: Leaves = manager.load([source])["tasks"]
    except (OSError, DatasetsError) as error:
        raise InputError(f"the data of task '{name}' cannot be loaded: {error}") from error
    return leaves


def _has_own_examples(task: Task) -> bool:
    config = getattr(task, "fewshot_cfg", None)
    given = config is not None and (config.split is not None or config.samples is not None)
    return bool(given or task.has_training_docs())


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


def _figures(name: str, task: Task, samples: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Return each of lm-eval's metrics over all items of a requested task, pooled over its leaves."""
    pooled: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            if metric != "acc":
                pooled[metric, sample["filter"]].append(sample[metric])
    return [_figure(name, task, metric, kept, values) for (metric, kept), values in pooled.items()]


def _figure(name: str, task: Task, metric: str, kept: str, values: list[Any]) -> Measurement:
    aggregate: Callable[[list[Any]], float] = task.aggregation()[metric]
    value = float(aggregate(values))
    interval = None
    if all(isinstance(v, Real) for v in values) and abs(value - sum(values) / len(values)) < 1e-9:
        binary = set(values) <= {0, 1}
        interval = wilson_interval(int(sum(values)), len(values)) if binary else normal_interval(values)
    labels: dict[str, str | int] = {"task": name}
    if kept != "none":
        labels["filter"] = kept
    return Measurement(
        name=metric,
        value=value,
        unit=UNITS.get(metric, "share" if interval else ""),
        higher_is_better=bool(task.higher_is_better().get(metric, True)),
        labels=labels,
        n=len(values),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        note="by lm-eval",
    )
