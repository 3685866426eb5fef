"""How much the tasks in a folder of one's own take, told by their files: nothing has to be guessed for a plan.

Read are task files over JSON data on this disk (``dataset_path: json``): how many items there are, how long their texts
are, how many answers are offered. What a template makes of them is not computed: its words come on top.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from compress.data.task_lengths import UNKNOWN, TaskLength

LOOKED_AT = 200
"""Items of a file whose length is looked at."""
CHARACTERS_PER_TOKEN = 4
NEW_TOKENS = 256
"""What lm-eval lets a model write where a task does not say."""


class _Loader(yaml.SafeLoader):
    """YAML in which ``!function`` names code, which is not looked for."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


@cache
def own_lengths(folder: Path) -> dict[str, TaskLength]:
    """Return the lengths of the tasks in a folder whose data are JSON files on this disk, by name."""
    found = {}
    for file in sorted(folder.rglob("*.yaml")):
        task = _read(file)
        if isinstance(name := task.get("task"), str) and (length := _length(task)):
            found[name] = length
    return found


def _read(file: Path, depth: int = 0) -> dict[str, Any]:
    """Return a task file with what it includes; nothing where it cannot be read, of which lm-eval says more."""
    try:
        task = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(task, dict):
        return {}
    included = task.get("include")
    is_one = isinstance(included, str) and depth < 5
    return {**(_read(file.parent / str(included), depth + 1) if is_one else {}), **task}


def _length(task: Mapping[str, Any]) -> TaskLength | None:
    items, looked_at = 0, list[dict[str, Any]]()
    for path in _data_files(task):
        try:
            with path.open(encoding="utf-8") as lines:
                some = list(islice(lines, LOOKED_AT))
            size = sum(len(line.encode()) for line in some)
            items += round(path.stat().st_size * len(some) / size) if size else 0
            looked_at += [doc for line in some if line.strip() and isinstance(doc := json.loads(line), dict)]
        except (OSError, ValueError):
            return None
    if not looked_at:
        return None
    tokens = sum(map(_characters, looked_at)) / len(looked_at) / CHARACTERS_PER_TOKEN
    if task.get("output_type") == "generate_until":
        settings = task.get("generation_kwargs")
        written = settings.get("max_gen_toks", NEW_TOKENS) if isinstance(settings, dict) else NEW_TOKENS
        return TaskLength(items, 0, round(tokens), int(written), _shots(task))
    rows = _choices(task, looked_at) if task.get("output_type") == "multiple_choice" else 1
    if not task.get("doc_to_text"):
        return TaskLength(items, rows, max(1, round(tokens / rows)), 0, _shots(task))
    answers = sum(_answer_characters(task, doc) for doc in looked_at) / len(looked_at) / CHARACTERS_PER_TOKEN
    shared = round(tokens - answers) if rows > 1 else 0
    return TaskLength(items, rows, max(1, round(tokens - answers + answers / rows)), 0, _shots(task), shared)


def _data_files(task: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files of the split that is answered."""
    arguments = task.get("dataset_kwargs")
    files = arguments.get("data_files") if isinstance(arguments, dict) else None
    if task.get("dataset_path") != "json" or files is None:
        return
    if isinstance(files, dict):
        split = task.get("test_split") or task.get("validation_split")
        files = files.get(split, list(files.values()))
    for path in [files] if isinstance(files, str) else files:
        if isinstance(path, str):
            yield Path(path)


def _choices(task: Mapping[str, Any], docs: list[dict[str, Any]]) -> int:
    """Return how many answers an item offers."""
    choices = task.get("doc_to_choice")
    if isinstance(choices, list):
        return max(1, len(choices))
    field = docs[0].get(str(choices).strip("{} "))
    if isinstance(field, list):
        return max(1, len(field))
    inside = str(choices).partition("[")[2].rpartition("]")[0]
    return inside.count(",") + 1 if inside else UNKNOWN.rows


def _answer_characters(task: Mapping[str, Any], doc: Mapping[str, Any]) -> int:
    """Return how long an item's answers are that are fields of its own, or one that lists them."""
    choices = str(task.get("doc_to_choice"))
    inside = choices.partition("[")[2].rpartition("]")[0] or choices.strip("{} ")
    return sum(_characters(doc.get(field.strip())) for field in inside.split(","))


def _characters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _shots(task: Mapping[str, Any]) -> int:
    shots = task.get("num_fewshot")
    return shots if isinstance(shots, int) else 0
