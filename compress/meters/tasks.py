"""lm-eval tasks over a model: which ones, which items of them, and what was answered.

lm-eval renders the prompts and judges the answers; choosing items and batching are ours. Of every task the same
items are used for every model: a seeded choice, sorted, over all leaves of a group alike.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from compress.data.tasks import demo_task_configs
from compress.errors import InputError, nearest
from compress.meters.accuracy import scores
from compress.meters.lm_eval_model import BackendLM

Leaves = dict[str, Task]
Logged = tuple[str, dict[str, Any]]
"""A leaf's name and lm-eval's own log of one of its items."""


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


def run_tasks(
    lm: BackendLM,
    name: str,
    leaves: Leaves,
    samples: int | None,
    part: tuple[int, int] = (0, 1),
    as_chat: bool = False,
) -> list[Logged]:
    """Let the model answer the chosen items of one requested task, always in the same order.

    `part`: of so many parts (the second number) that one alone; `in_order` puts the parts of a task together.
    `as_chat`: asked by the tokenizer's chat template, each solved example in turns of its own.
    """
    sizes = {leaf: len(task.eval_docs) for leaf, task in leaves.items()}
    chosen = _part_of(choose_items(sizes, samples, name), *part)
    if not chosen:
        return []
    used = {leaf: leaves[leaf] for leaf in chosen}
    # lm-eval looks every index up in the list: where all items are used, give it none.
    partial = {leaf: indices for leaf, indices in chosen.items() if len(indices) < sizes[leaf]}
    results = evaluate(
        lm=lm,
        task_dict={"tasks": used},
        samples=partial,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=as_chat,
        fewshot_as_multiturn=as_chat,
    )
    return [(leaf, sample) for leaf, samples in results["samples"].items() for sample in samples]


def in_order(parts: Sequence[Sequence[Logged]], leaves: Leaves) -> list[Logged]:
    """Return what was logged in all parts of a task in the order it has where one answers all: leaf, filter, item."""
    logged = [each for part in parts for each in part]
    filters = list(dict.fromkeys(sample["filter"] for _, sample in logged))
    places = {leaf: place for place, leaf in enumerate(leaves)}
    return sorted(
        logged, key=lambda each: (places[each[0]], filters.index(each[1]["filter"]), each[1]["doc_id"])
    )


def judged(logged: Sequence[Logged]) -> list[Logged]:
    """Return the logs without prompts and answers: what tells where an item stands, and how it was judged."""
    return [
        (leaf, {key: sample[key] for key in ("doc_id", "filter", "metrics", *sample["metrics"])})
        for leaf, sample in logged
    ]


def right_answers(logged: Sequence[Logged], leaves: Leaves) -> list[bool]:
    """Return for each item whether it was answered right, in part at least by half; nothing where nothing says so."""
    found = scores(logged, leaves)
    return [
        sample[found[leaf].metric] >= 0.5
        for leaf, sample in logged
        if leaf in found and sample["filter"] == found[leaf].filter
    ]


def _part_of(chosen: Mapping[str, list[int]], part: int, num_parts: int) -> dict[str, list[int]]:
    """Return every `num_parts`-th item, counted over all leaves; no leaf without any."""
    flat = [(leaf, index) for leaf, indices in chosen.items() for index in indices][part::num_parts]
    return {
        leaf: [index for name, index in flat if name == leaf]
        for leaf in dict.fromkeys(name for name, _ in flat)
    }


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
