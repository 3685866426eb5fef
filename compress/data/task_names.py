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
_METRICS = re.compile(r"""\bmetric["']?[ \t]*:[ \t]*["']?(?:!function[ \t]+[\w.]+\.)?([\w-]+)""")
"""An entry of ``metric_list``: a name, or a function, whose name it is."""
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
def metrics(task_folder: Path | None = None) -> frozenset[str]:
    """Return the metrics that any task of lm-eval or the folder declares."""
    return frozenset(name for text in _texts(task_folder) for name in _METRICS.findall(text))


@cache
def _known(task_folder: Path | None) -> frozenset[str]:
    values = (value for text in _texts(task_folder) for value in _NAMES.findall(text))
    return frozenset(word for value in values for word in _WORDS.findall(value))


def _texts(task_folder: Path | None) -> Iterator[str]:
    """Yield the task files of lm-eval and of a folder, included ones too."""
    lm_eval = find_spec("lm_eval")
    assert lm_eval is not None and lm_eval.submodule_search_locations
    folders = [Path(place) / "tasks" for place in lm_eval.submodule_search_locations]
    for folder in (*folders, task_folder):
        if folder:
            yield from _texts_in(folder)


def _texts_in(folder: Path) -> Iterator[str]:
    files, seen = [*folder.rglob("*.yaml")], set[Path]()
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8", errors="replace")
        yield text
        files += [file.parent / path for value in _INCLUDES.findall(text) for path in _WORDS.findall(value)]
