"""Quality: the pipeline's tasks through lm-eval, each answer kept, compared item by item with the original's.

`context.inputs`: ``tasks`` (the demonstration tasks, when the pipeline uses them) and ``original_quality``
(the original's own measurement, whose items pair with these). Writes ``items.jsonl`` and, for `prompts`,
``generations.json``.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress.data.task_files import own_lengths
from compress.data.task_lengths import EvaluationLength, evaluation_length
from compress.data.world import DEMO_TASKS
from compress.machine import planned_machine
from compress.measure.accuracy import accuracy_measurements
from compress.measure.items import read_items, write_items
from compress.models.effort import head_traffic, opening, reading, reading_tokenizer, writing
from compress.plugins import Context, Measured, StepConfig
from compress.records import Artifact, Generation, Measurement, ModelSpec, Work

if TYPE_CHECKING:
    from compress.meters.lm_eval_model import BackendLM

VERSION = 5

GENERATIONS = "generations.json"

PROMPT_TOKENS = 16
"""Of a prompt for the report."""
TASKS_SECONDS = 3.0
"""To import lm-eval and find tasks."""
FETCH_SECONDS = 8.0
"""To load a task that is not the demo's, its data included."""
OWN_SECONDS = 0.1
"""For one whose data are files here."""
SECONDS_PER_ROW = 5e-4
"""To render, tokenize and judge an item, or one of its answers."""


class Config(StepConfig):
    """What is asked, and how."""

    tasks: tuple[str, ...]
    """Names of lm-eval tasks or groups. A group counts as one task over all its items."""
    samples: int | None = Field(default=None, ge=1)
    """Items of each task, the same ones for every model; all when not given."""
    few_shot: int | None = Field(default=None, ge=0)
    """Solved examples before each item; each task's own number when not given."""
    chat_template: bool = False
    """Whether items are asked as a chat, by the tokenizer's template, each example in turns of its own."""
    batch_size: int = Field(default=64, ge=1)
    """Rows at once. Part of the result (the last bits differ), so the same for every model."""
    task_folder: Path | None = None
    """A folder of your own lm-eval task files. They can name Python functions: run only files you trust."""
    prompts: tuple[str, ...] = ()
    """Beginnings the model continues greedily, for the report."""
    new_tokens: int = Field(default=32, ge=1)
    """How far it continues them."""


def estimate(measured: Measured, config: Config) -> Work:
    """Return about what answering takes; how long items are is known of popular tasks (`data.task_lengths`)."""
    own = own_lengths(config.task_folder) if config.task_folder else {}
    length = evaluation_length(config.tasks, config.samples, config.few_shot, own)
    row_tokens = length.read_tokens / max(1.0, length.rows)
    batch = config.batch_size
    work = opening(measured.spec).plus(reading_tokenizer(measured.spec))
    work = work.plus(
        reading(
            measured.spec, length.read_tokens, batch * row_tokens, row_tokens / 2, asked=length.asked_tokens
        )
    )
    if planned_machine().card is None and measured.kind != "onnx":
        work = work.plus(head_traffic(measured.spec, length.asked_tokens))
    # Answers in the model's own words, and prompts to go on with: batches of both, one token after the other.
    if length.new_tokens:
        work = work.plus(_written(measured.spec, batch, length))
    if config.prompts:
        work = work.plus(writing(measured.spec, len(config.prompts), PROMPT_TOKENS, config.new_tokens))
    seconds = TASKS_SECONDS + SECONDS_PER_ROW * (length.rows + length.items)
    seconds += sum(
        OWN_SECONDS if task in own else FETCH_SECONDS for task in config.tasks if task not in DEMO_TASKS
    )
    return work.plus(Work(serial_seconds=seconds)).model_copy(
        update={"on_processor": measured.kind == "onnx"}
    )


def _written(spec: ModelSpec, batch: int, length: EvaluationLength) -> Work:
    prompt, new = int(length.prompt_tokens / length.items), int(length.new_tokens / length.items)
    return writing(spec, batch, prompt, new).times(length.items / batch)


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `accuracy` a task and its mean, other metrics under lm-eval's names, and the paired changes.

    Raises `InputError` for unknown tasks, for few-shot examples that would leak answers, and where a chat is asked for
    of a tokenizer without a template.
    """
    from compress.backends.interface import OpenOptions
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
    backend = open_artifact(artifact, OpenOptions(widened=True))

    def on_progress(done: int, total: int) -> None:
        context.progress(done, total, "rows")
        if context.stopping:
            context.stop()

    ends = end_ids(artifact.path)
    lm = BackendLM(backend, load_tokenizer(artifact.path), config.batch_size, on_progress, ends)
    answers = [
        answer(lm, name, leaves, config.samples, config.chat_template) for name, leaves in tasks.items()
    ]
    _write_generations(lm, config, context.folder)
    for said in lm.gave_way:
        context.warn(said)
    backend.close()
    items = [item for each in answers for item in each.items]
    write_items(context.folder, items)
    original = context.inputs.get("original_quality")
    scored = {name: each.scored for name, each in zip(tasks, answers, strict=True)}
    guessed = {name: each.guessing for name, each in zip(tasks, answers, strict=True)}
    measured = accuracy_measurements(items, read_items(original.path) if original else None, scored, guessed)
    return measured + [figure for each in answers for figure in each.figures]


def _write_generations(lm: "BackendLM", config: Config, folder: Path) -> None:
    if not config.prompts:
        return
    texts = lm.generate(config.prompts, {"max_gen_toks": config.new_tokens, "do_sample": False})
    generations = [
        Generation(prompt=p, text=t).model_dump() for p, t in zip(config.prompts, texts, strict=True)
    ]
    (folder / GENERATIONS).write_text(json.dumps(generations, ensure_ascii=False, indent=1), encoding="utf-8")
