"""The runs this machine remembers: where their records lie and how a person names them."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.digests import canonical_digest
from compress.environment import home
from compress.errors import InputError, nearest
from compress.pipeline.plan import Plan
from compress.records import RunRecord

RECORD = "run.json"
INGREDIENTS = "ingredients.json"
DRIVERS = "drivers.lock"
"""Held (flock, shared) by the processes that do the run; the kernel drops it however they end."""


def runs_folder(root: Path | None = None) -> Path:
    """Return the folder that holds a folder for every run."""
    return (root or home()) / "runs"


def run_id(name: str, plan: Plan) -> str:
    """Return the run's name: the pipeline's, and a digest of everything it will make.

    The same pipeline run again is the same run; a changed one is another.
    """
    return f"{name}-{canonical_digest([node.key for node in plan.nodes])[:8]}"


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Be known as alive while doing a run: what is called running in its record is so."""
    with (folder / DRIVERS).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def save_record(record: RunRecord, folder: Path) -> None:
    """Write ``run.json`` so that a reader sees the old record or the new one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{RECORD}.{os.getpid()}"
    temporary.write_text(record.model_dump_json(indent=1))
    temporary.replace(folder / RECORD)


def find_run(reference: str, root: Path | None = None) -> RunRecord:
    """Return a run by id, by pipeline name (its latest run), or by the path of a ``run.json``.

    Raises `InputError` naming the runs there are.
    """
    path = Path(reference)
    if path.suffix == ".json" or path.is_dir():
        return _read(path / RECORD if path.is_dir() else path)
    records = sorted(runs_folder(root).glob(f"*/{RECORD}"), key=lambda p: p.stat().st_mtime)
    by_id = {p.parent.name: p for p in records}
    by_name = {p.parent.name.rpartition("-")[0]: p for p in records}
    found = by_id.get(reference) or by_name.get(reference)
    if found is None:
        known = [*by_name, *by_id]
        raise InputError(
            f"there is no run called '{reference}'{nearest(reference, known)} "
            + (
                f"Known runs: {', '.join(known)}"
                if known
                else "Nothing has been run yet; try `compress run`."
            )
        )
    return _read(found)


def all_runs(root: Path | None = None) -> list[RunRecord]:
    """Return every remembered run, oldest first."""
    paths = sorted(runs_folder(root).glob(f"*/{RECORD}"), key=lambda p: p.stat().st_mtime)
    return [_read(path) for path in paths]


def save_ingredients(plan: Plan, folder: Path) -> None:
    """Keep what every key was made of, so that the next plan can say what changed."""
    (folder / INGREDIENTS).write_text(json.dumps({n.name: n.ingredients for n in plan.nodes}))


def last_ingredients(name: str, root: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the ingredients of the latest run of a pipeline name; empty when there is none."""
    files = sorted(runs_folder(root).glob(f"{name}-????????/{INGREDIENTS}"), key=lambda p: p.stat().st_mtime)
    if not files:
        return {}
    ingredients: dict[str, dict[str, Any]] = json.loads(files[-1].read_text())
    return ingredients


def _read(path: Path) -> RunRecord:
    """Return a record. One that says running although nobody does the run any more is of an interrupted one."""
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
        if record.status != "running" or _is_driven(path.parent):
            return record
        killed = "its process was killed, or the machine went down"
        return record.model_copy(update={"status": "interrupted", "error": killed})
    except FileNotFoundError:
        raise InputError(f"{path}: no such run record") from None
    except ValueError as error:
        raise InputError(f"{path}: not a run record of this version ({str(error).splitlines()[0]})") from None


def _is_driven(folder: Path) -> bool:
    lock = folder / DRIVERS
    if not lock.exists():
        return False
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
