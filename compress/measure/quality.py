"""Quality: the pipeline's tasks through lm-eval, each answer kept, compared item by item with the original's.

`context.inputs`: ``tasks`` (the demonstration tasks, when the pipeline uses them) and ``original_quality``
(the original's own measurement, whose items pair with these). Writes ``items.jsonl`` and, for `prompts`,
``generations.json``.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress.measure.accuracy import accuracy_measurements
from compress.measure.items import read_items, write_items
from compress.plugins import Context, StepConfig
from compress.records import Artifact, Generation, Measurement

if TYPE_CHECKING:
    from compress.meters.lm_eval_model import BackendLM

VERSION = 2

GENERATIONS = "generations.json"


class Config(StepConfig):
    """What is asked, and how."""

    tasks: tuple[str, ...]
    """Names of lm-eval tasks or groups. A group counts as one task over all its items."""
    samples: int | None = Field(default=None, ge=1)
    """Items of each task, the same ones for every model; all when not given."""
    few_shot: int | None = Field(default=None, ge=0)
    """Solved examples before each item; each task's own number when not given."""
    batch_size: int = Field(default=64, ge=1)
    """Rows at once. Part of the result (the last bits differ), so the same for every model."""
    task_folder: Path | None = None
    """A folder of your own lm-eval task files. They can name Python functions: run only files you trust."""
    prompts: tuple[str, ...] = ()
    """Beginnings the model continues greedily, for the report."""
    new_tokens: int = Field(default=32, ge=1)
    """How far it continues them."""


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `accuracy` a task and its mean, other metrics under lm-eval's names, and the paired changes.

    Raises `InputError` for unknown tasks and for few-shot examples that would leak answers.
    """
    from compress.backends.opening import open_artifact
    from compress.measure.evaluation import answer
    from compress.meters.lm_eval_model import BackendLM
    from compress.meters.tasks import load_tasks, prepare_few_shot
    from compress.models.checkpoint import load_tokenizer
    from compress.models.special_ids import end_ids

    demo = context.inputs.get("tasks")
    tasks = load_tasks(config.tasks, demo.path if demo else None, config.task_folder)
    for leaves in tasks.values():
        prepare_few_shot(leaves, config.few_shot)
    backend = open_artifact(artifact)

    def on_progress(done: int, total: int) -> None:
        context.progress(done, total, "rows")
        if context.stopping:
            context.stop()

    ends = end_ids(artifact.path)
    lm = BackendLM(backend, load_tokenizer(artifact.path), config.batch_size, on_progress, ends)
    answers = [answer(lm, name, leaves, config.samples) for name, leaves in tasks.items()]
    _write_generations(lm, config, context.folder)
    backend.close()
    items = [item for each in answers for item in each.items]
    write_items(context.folder, items)
    original = context.inputs.get("original_quality")
    scored = {name: each.scored for name, each in zip(tasks, answers, strict=True)}
    measured = accuracy_measurements(items, read_items(original.path) if original else None, scored)
    return measured + [figure for each in answers for figure in each.figures]


def _write_generations(lm: "BackendLM", config: Config, folder: Path) -> None:
    if not config.prompts:
        return
    texts = lm.generate(config.prompts, {"max_gen_toks": config.new_tokens, "do_sample": False})
    generations = [
        Generation(prompt=p, text=t).model_dump() for p, t in zip(config.prompts, texts, strict=True)
    ]
    (folder / GENERATIONS).write_text(json.dumps(generations, ensure_ascii=False, indent=1), encoding="utf-8")
