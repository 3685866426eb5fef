"""Which tasks lm-eval knows, read from its files without importing it: a misspelled name is told before any work.

lm-eval's own index takes seconds to import and to make. Here nothing is parsed: the values of the keys that name
something (``task``, ``group``, ``tag``) are found in the text, in included files too. A few words more are found than
there are names, none less; lm-eval itself has the last word when a task is loaded.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from compress.data import world
from compress.errors import InputError, nearest

DEMO = (*world.DEMO_TASKS, world.TEXT_TASK)

_NAMES = re.compile(r"""^["']?(?:task|group|tag)["']?[ \t]*:(.*(?:\n[ \t]*-.*)*)""", re.MULTILINE)
"""A top-level key with its value on the same line, or as a list below."""
_INCLUDES = re.compile(r"""^["']?include["']?[ \t]*:(.*(?:\n[ \t]*-.*)*)""", re.MULTILINE)
_WORDS = re.compile(r"""[^\s,\[\]"']+""")


def check_tasks(names: Iterable[str], task_folder: Path | None = None) -> None:
    """Raise `InputError`, with the nearest match, for a name that is no task of the demo, the folder or lm-eval."""
    for name in names:
        if name not in DEMO and name not in (known := _known(task_folder)):
            where = f"those in {task_folder}" if task_folder else "the demo's"
            raise InputError(
                f"no task is called '{name}'{nearest(name, [*DEMO, *sorted(known)])} "
                f"Allowed: {where} and those of lm-eval"
            )


@cache
def _known(task_folder: Path | None) -> frozenset[str]:
    lm_eval = find_spec("lm_eval")
    assert lm_eval is not None and lm_eval.submodule_search_locations
    folders = [Path(place) / "tasks" for place in lm_eval.submodule_search_locations]
    return frozenset(word for folder in (*folders, task_folder) if folder for word in _words(folder))


def _words(folder: Path) -> Iterator[str]:
    files, seen = [*folder.rglob("*.yaml")], set[Path]()
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8", errors="replace")
        for value in _NAMES.findall(text):
            yield from _WORDS.findall(value)
        files += [file.parent / path for value in _INCLUDES.findall(text) for path in _WORDS.findall(value)]
