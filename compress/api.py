"""The public functions: what the console script calls, and a notebook can."""

import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.engine.doctor import doctor
from compress.engine.runs import find_run
from compress.engine.store import Store
from compress.errors import CompressError, InputError, nearest
from compress.pipeline.json_schema import pipeline_schema
from compress.pipeline.plan import Plan
from compress.pipeline.schema import Pipeline, load_pipeline
from compress.records import RunRecord

__all__ = [
    "collect_garbage",
    "compare",
    "cut",
    "doctor",
    "export_student",
    "find_run",
    "load_pipeline",
    "make_plan",
    "pipeline_schema",
    "run",
    "scaffold",
    "write_report",
]

Listener = Callable[[dict[str, Any]], None]


def make_plan(pipeline: Pipeline, *, rehearsal: bool = False, assume: bool = False) -> Plan:
    """Return everything the pipeline would make: keys, exact sizes, estimates. Reads no weights, runs nothing.

    assume: where the hub cannot be asked, take what is published of the models named; `Plan.assumed` says what.
    Raises `InputError` for what cannot work.
    """
    from compress.pipeline import planner

    return planner.make_plan(pipeline, Store().memo, rehearsal, assume)


def scaffold(model: str, target: str = "50%", texts: Sequence[str] = ()) -> str:
    """Return a commented pipeline for a checkpoint, planned before it is handed over, with the time that takes.

    model: a local folder, or a hub id. target, texts: as `compress init` has them. It is sized for the machine that is
    planned for (`machine.planning_for`). Raises `InputError` for what cannot work.
    """
    from compress.pipeline.scaffold import scaffold as write

    return write(model, target, texts, _planned_seconds)


def _planned_seconds(text: str) -> dict[str, float]:
    """Return how long each node of a pipeline takes, given the file's text."""
    from compress.engine.plan_table import seconds_by_node
    from compress.engine.rates import Rates

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        plan = make_plan(load_pipeline(path), assume=True)
    return seconds_by_node(plan, Rates(Store().root))


def run(
    pipeline: Pipeline,
    *,
    until: str | None = None,
    redo_from: str | None = None,
    rehearsal: bool = False,
    listener: Listener | None = None,
    grace: float | None = None,
) -> RunRecord:
    """Make and measure everything in the pipeline that is not in the store yet; return the run's record.

    until: stop after this step, or once this data is packed. redo_from: make this step and all that follows from it
    anew. rehearsal: on a tiny random model of the same family, with built-in data. listener: called with every event
    (see `engine.events`). grace: seconds that a step may take to save its work when the run is stopped; left out, as
    long as it says it needs. Raises the `CompressError` that stopped it; what was finished is kept and the record on
    disk says how far it got.
    """
    from compress.engine.execute import Execution
    from compress.engine.runs import run_id, runs_folder, save_ingredients

    store = Store()
    plan = cut(make_plan(pipeline, rehearsal=rehearsal), until, redo_from)
    if redo_from:
        for node in plan.after(redo_from):
            store.discard(node.key)
    name = f"{pipeline.name}-test" if rehearsal else pipeline.name
    identity = run_id(name, plan)
    folder = runs_folder(store.root) / identity
    folder.mkdir(parents=True, exist_ok=True)
    save_ingredients(plan, folder)
    (folder / "pipeline.yaml").write_text(pipeline.text)
    with _events_file(folder, listener) as listen:
        draft = _draft(pipeline, identity, name, rehearsal)
        try:
            return Execution(plan, draft, folder, store, pipeline.gates, listen, grace).run()
        except CompressError as error:
            error.run = identity
            raise


def cut(plan: Plan, until: str | None, redo_from: str | None) -> Plan:
    """Return the plan cut after a step, or after data. Raises `InputError` for a name that is not in it.

    `redo_from` must be among the steps that are left.
    """
    models = [node.name for node in plan.models]
    _check_name(until, [*models, *plan.data])
    _check_name(redo_from, models)
    left = plan.until(until) if until else plan
    if redo_from and redo_from not in {node.name for node in left.nodes}:
        raise InputError(f"--from {redo_from}: that comes after --until {until}; leave out one of the two")
    return left


def write_report(record: RunRecord, folder: Path | None = None) -> Path:
    """Write the run's HTML report into a folder (``reports``) and return its path."""
    from compress.report import write_report as write

    return write(record, (folder or Path("reports")) / f"{record.id}.html")


def compare(a: RunRecord, b: RunRecord) -> str:
    """Return what differs between two runs, as text."""
    from compress.report import compare as compare_records

    return compare_records(a, b)


def export_student(record: RunRecord, step: str, folder: Path) -> Path:
    """Copy a student out of the store into a new folder, with a model card. Return the folder."""
    from compress.engine.export_student import export_student as export

    return export(Store(), record, step, folder)


def collect_garbage(*, keep_runs: int = 1, dry_run: bool = False) -> tuple[int, int]:
    """Delete what no kept run needs: all but the latest `keep_runs` runs of each pipeline. Return (entries, bytes)."""
    from compress.engine.garbage import collect

    return collect(Store(), keep_runs=keep_runs, dry_run=dry_run)


def _check_name(name: str | None, names: list[str]) -> None:
    if name is not None and name not in names:
        raise InputError(
            f"the pipeline has no step '{name}'{nearest(name, names)} Allowed: {', '.join(names)}"
        )


def _draft(pipeline: Pipeline, identity: str, name: str, rehearsal: bool) -> RunRecord:
    from compress.environment import environment
    from compress.plugins import internal

    demo_tasks: dict[str, float] = internal("data.world.__init__").DEMO_TASKS
    return RunRecord(
        id=identity,
        name=name,
        status="running",
        rehearsal=rehearsal,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        pipeline=pipeline.text,
        seed=pipeline.seed,
        environment=environment(),
        usd_per_hour=pipeline.cost.usd_per_hour if pipeline.cost else None,
        utilisation=pipeline.cost.utilisation if pipeline.cost else 1.0,
        chance={task: demo_tasks[task] for task in pipeline.evaluate.tasks if task in demo_tasks},
        tasks=pipeline.evaluate.tasks,
    )


@contextlib.contextmanager
def _events_file(folder: Path, listener: Listener | None) -> Iterator[Listener]:
    from compress.engine.events import to_file

    with (folder / "events.jsonl").open("a") as stream:
        listeners = [to_file(stream)] + ([listener] if listener else [])

        def listen(event: dict[str, Any]) -> None:
            for each in listeners:
                each(event)

        yield listen
