"""Runs as a person asks about them: what is done, what it scored, what stopped it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from compress.engine.events import describe_progress, duration
from compress.engine.plan_table import align
from compress.engine.runs import runs_folder
from compress.records import RunRecord, StepRecord


def status_lines(records: Sequence[RunRecord], detailed: bool) -> Iterator[str]:
    """Yield the lines of ``compress status``: a table of runs, or one run's steps."""
    if not records:
        yield "Nothing has been run yet; try `compress run pipelines/quickstart.yaml`"
    elif detailed:
        for record in records:
            yield from _one(record)
    else:
        header = ("run", "status", "started", "took", "models")
        yield from align([header, *map(_row, records)])


def _row(record: RunRecord) -> tuple[str, ...]:
    return (record.id, record.status, record.started, duration(record.seconds), str(len(record.steps)))


def _one(record: RunRecord) -> Iterator[str]:
    yield f"{record.id}: {record.status}, started {record.started}, {duration(record.seconds)}"
    if record.error:
        yield f"  {record.error}"
    header = ("step", "use", "parameters", "weights", "took", "mean accuracy")
    yield from align([header, *map(_step, record.steps)])
    last = _last_progress(runs_folder() / record.id / "events.jsonl")
    if record.status == "running" and last:
        yield f"now: {last}"


def _step(step: StepRecord) -> tuple[str, ...]:
    accuracy = next(
        (f"{100 * m.value:.1f} %" for m in step.measurements if m.name == "mean_accuracy"), "not measured"
    )
    size = step.realized
    took = duration(step.seconds)
    return (step.name, step.use, f"{size.num_parameters:,}", f"{size.weight_bytes:,} B", took, accuracy)


def _last_progress(events: Path) -> str:
    if not events.exists():
        return ""
    for line in reversed(events.read_text().splitlines()):
        try:
            event = json.loads(line)
        except ValueError:  # torn by a full disk
            continue
        if event["event"] == "progress":
            return f"{event['node']}: {describe_progress(event)}"
    return ""
