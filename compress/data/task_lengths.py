"""How much an evaluation reads: about how many items popular tasks have, and how many tokens an item takes.

Plans are made before any data are there, so these are round averages, in tokens of a vocabulary of about 128k, without
solved examples. Answers that are one token each, such as the letters of MMLU, share the row of their question; of
longer ones the question is read once, where it is long enough (`compress.meters.request_rows`), as every model with a
key-value cache does.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from compress.data.world import DEMO_TASKS, NUM_ITEMS, TEXT_TASK


class TaskLength(NamedTuple):
    """What one task takes."""

    items: int
    """All there are; of a group, over all its tasks."""
    rows: int
    """Texts the model reads for an item: one for every answer longer than a token."""
    row_tokens: int
    new_tokens: int = 0
    """Tokens the model writes for an item, where it answers in its own words."""
    shots: int = 0
    """Solved examples the task itself shows."""
    shared_tokens: int = 0
    """Of a row's tokens, those that all rows of an item begin with: they are no answer."""


class EvaluationLength(NamedTuple):
    """What all tasks take together."""

    read_tokens: float
    """In rows that are read only."""
    asked_tokens: float
    """Of these, the answers: what is asked of the model's head."""
    rows: float
    prompt_tokens: float
    """Before what is written."""
    new_tokens: float
    items: float


FEWEST_SHARED = 16
"""Tokens at the beginning of rows that are worth a pass of their own."""
MOST_READ = 0.8
"""Of the tokens that rows have, how many may be left to read for what they share to be worth that."""

UNKNOWN = TaskLength(items=1500, rows=4, row_tokens=100)
"""A task that is not in the table: four answers of a middling length."""

LENGTHS = {
    "arc_challenge": TaskLength(1172, 4, 35, shared_tokens=27),
    "arc_easy": TaskLength(2376, 4, 30, shared_tokens=23),
    "boolq": TaskLength(3270, 1, 150, shared_tokens=149),
    "commonsense_qa": TaskLength(1221, 1, 60, shared_tokens=59),
    "gpqa": TaskLength(448, 1, 250, shared_tokens=249),
    "gsm8k": TaskLength(1319, 0, 75, 256, 5),
    "hellaswag": TaskLength(10_042, 4, 95, shared_tokens=66),
    "ifeval": TaskLength(541, 0, 60, 1280),
    "lambada_openai": TaskLength(5153, 1, 90, shared_tokens=88),
    "leaderboard_mmlu_pro": TaskLength(12_032, 1, 200, 0, 5, 199),
    "mmlu": TaskLength(14_042, 1, 130, shared_tokens=129),
    "mmlu_pro": TaskLength(12_032, 0, 200, 512, 5),
    "openbookqa": TaskLength(500, 4, 20),
    "piqa": TaskLength(1838, 2, 40),
    "race": TaskLength(1045, 4, 480, shared_tokens=470),
    "sciq": TaskLength(1000, 4, 120, shared_tokens=117),
    "social_iqa": TaskLength(1954, 3, 45, shared_tokens=39),
    "truthfulqa_mc1": TaskLength(817, 5, 220, shared_tokens=205),
    "truthfulqa_mc2": TaskLength(817, 7, 220, shared_tokens=205),
    "wikitext": TaskLength(62, 3, 1600),
    "winogrande": TaskLength(1267, 2, 28),
    **dict.fromkeys(DEMO_TASKS, TaskLength(NUM_ITEMS, 4, 15)),
    TEXT_TASK: TaskLength(NUM_ITEMS, 1, 25),
}


def evaluation_length(
    tasks: Iterable[str],
    samples: int | None = None,
    few_shot: int | None = None,
    own: Mapping[str, TaskLength] | None = None,
) -> EvaluationLength:
    """Return about what answering so many items of each task takes, all of them when not given.

    few_shot: solved examples before each item, each as long as the item itself; the task's own number when not given.
    own: lengths that are known better (`data.task_files`).
    """
    known = {**LENGTHS, **(own or {})}
    parts = [_length_of(known.get(task, UNKNOWN), samples, few_shot) for task in tasks]
    return EvaluationLength(*(sum(column) for column in zip(*parts, strict=True))) if parts else NOTHING


NOTHING = EvaluationLength(0, 0, 0, 0, 0, 0)


def _length_of(task: TaskLength, samples: int | None, few_shot: int | None) -> EvaluationLength:
    items = min(task.items, samples or task.items)
    examples = task.row_tokens * (task.shots if few_shot is None else few_shot)
    tokens = task.row_tokens + examples
    rows = items * task.rows
    written = items * task.new_tokens
    read = items * _read_tokens(task.rows, tokens, task.shared_tokens + examples)
    asked = rows * (task.row_tokens - task.shared_tokens)
    return EvaluationLength(read, asked, rows, items * tokens if written else 0, written, items)


def _read_tokens(rows: int, tokens: int, shared: int) -> int:
    """Return what is read of an item: what its rows share once, if that pays, as `request_rows` decides."""
    once = shared + rows * (tokens - shared)
    return once if shared >= FEWEST_SHARED and once <= MOST_READ * rows * tokens else rows * tokens
