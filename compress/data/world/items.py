"""Held-out tasks: statements in reserved wordings without their last word, and four ways to end each."""

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

from compress.data.world import agreement, facts, recall, sums
from compress.data.world.documents import documents
from compress.data.world.wordings import Question

ASK = {
    "world_facts": facts.ask,
    "world_agreement": agreement.ask,
    "world_sums": sums.ask,
    "world_recall": recall.ask,
}
NUM_OPTIONS = 4
DEMO_TASKS: dict[str, float] = dict.fromkeys(ASK, 1 / NUM_OPTIONS)
"""The multiple-choice tasks, each with the accuracy of guessing."""
TEXT_TASK = "world_text"
"""The perplexity task: whole texts of the held-out split."""
NUM_ITEMS = 600


class Item(NamedTuple):
    """A prompt, the options that may end it, and which of them is true."""

    prompt: str
    options: tuple[str, ...]
    gold: int


def items(task: str) -> list[Item]:
    """Return the items of a task, none twice. The true option stands equally often in every place."""
    r = Random(f"demo world, items of {task}")
    questions = {question.prompt: question for question in islice(_questions(r, task), 20 * NUM_ITEMS)}
    return [_item(r, question, index) for index, question in enumerate(islice(questions.values(), NUM_ITEMS))]


def texts() -> list[str]:
    """Return the texts of the perplexity task."""
    return list(islice(documents("heldout", seed=-1), NUM_ITEMS))


def _questions(r: Random, task: str) -> Iterator[Question]:
    while True:
        yield ASK[task](r, reserved=True)


def _item(r: Random, question: Question, index: int) -> Item:
    options = r.sample(question.wrong, len(question.wrong))
    gold = index % NUM_OPTIONS
    options.insert(gold, question.answer)
    # The full stop ends the answer: without it "1" would be credited with all that "12" earns.
    return Item(question.prompt, tuple(f"{option}." for option in options), gold)
