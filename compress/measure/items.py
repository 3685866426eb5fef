"""The answer to every question, kept so that two models can be compared item by item."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from compress.records import Record

FILE = "items.jsonl"

Identity = tuple[str, str, str, int, str]


class Item(Record):
    """One question and how a model did on it.

    `task` is the name asked for, `leaf` lm-eval's own (they differ in groups such as ``mmlu``). `metrics`
    holds the item's figures, `log_probs` the summed log-probability of each option in nats.
    """

    task: str
    leaf: str
    doc_id: int
    doc_hash: str
    filter: str
    metrics: dict[str, float]
    log_probs: tuple[float, ...] = ()

    @property
    def identity(self) -> Identity:
        """The same for the same item of a task, whoever answered it. A question that is asked twice is two items."""
        return self.task, self.leaf, self.filter, self.doc_id, self.doc_hash


def write_items(folder: Path, items: Iterable[Item]) -> None:
    """Write one JSON line an item."""
    lines = (json.dumps(item.model_dump(), ensure_ascii=False) + "\n" for item in items)
    (folder / FILE).write_text("".join(lines), encoding="utf-8")


def read_items(folder: Path) -> list[Item]:
    """Read what `write_items` wrote."""
    with (folder / FILE).open(encoding="utf-8") as lines:
        return TypeAdapter(list[Item]).validate_python([json.loads(line) for line in lines])
