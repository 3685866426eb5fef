"""The demo world's tasks as an lm-eval folder: one YAML and one JSON-lines file a task.

The YAML names no path. lm-eval hands a task's own YAML path to `read_documents`, which reads the file beside
it: the folder works wherever it lies, moved or renamed, offline and without a dataset cache.
"""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from compress.data import world
from compress.plugins import Context, StepConfig
from compress.records import Artifact, JsonValue, ModelSpec, Outcome, Work

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = world.VERSION
ACCEPTS: tuple[str, ...] = ()
PRODUCES = "tasks"
COMPUTES = False

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": "options",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
PERPLEXITY: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}


class Config(StepConfig):
    """The demo tasks have no settings."""


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """A few files of invented questions."""
    return Work(serial_seconds=0.5, on_processor=True)


def run(parent: Artifact | None, config: Config, context: Context) -> Outcome:
    """Write the tasks: `lm_eval.tasks.TaskManager(include_path=context.folder)` finds them by name."""
    write_tasks(context.folder)
    return Outcome(facts={"tasks": [*world.DEMO_TASKS, world.TEXT_TASK], "items_per_task": world.NUM_ITEMS})


def write_tasks(folder: Path) -> None:
    """Write every demo task into a folder."""
    for task in world.DEMO_TASKS:
        documents = ({"prompt": i.prompt, "options": i.options, "gold": i.gold} for i in world.items(task))
        _write(folder / f"{task}.yaml", documents)
    _write(folder / f"{world.TEXT_TASK}.yaml", ({"text": text} for text in world.texts()))


def demo_task_configs(folder: Path) -> list[dict[str, Any]]:
    """Return the tasks of a folder as dictionaries for `TaskManager.load` or `ConfigurableTask(config=…)`."""
    return [
        {**_settings(path.stem), "custom_dataset": partial(_read, path.with_suffix(".jsonl"))}
        for path in sorted(folder.glob("*.yaml"))
    ]


def read_documents(config_source: str, **_: object) -> dict[str, "Dataset"]:
    """Return the test split of a task from the path of its YAML: lm-eval's ``custom_dataset`` hook."""
    return _read(Path(config_source).with_suffix(".jsonl"))


def _read(path: Path, **_: object) -> dict[str, "Dataset"]:
    from datasets import Dataset

    with path.open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def _settings(task: str) -> dict[str, Any]:
    kind = CHOICE if task in world.DEMO_TASKS else PERPLEXITY
    return {"task": task, "test_split": "test", **kind, "metadata": {"version": world.VERSION}}


def _write(path: Path, documents: Iterable[dict[str, JsonValue]]) -> None:
    settings = yaml.safe_dump(_settings(path.stem), sort_keys=False)
    hook = f"custom_dataset: !function {read_documents.__module__}.{read_documents.__name__}\n"
    path.write_text(settings + hook, encoding="utf-8")
    lines = (json.dumps(document) + "\n" for document in documents)
    path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
