"""The tables behind the tables: what a chart is drawn from, every measurement, keys, the environment."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from compress.records import JsonValue, RunRecord, StepRecord
from compress.report import figures, units
from compress.report.cells import Cell, Row, Table, Text, figure, measured, words
from compress.report.charts import Cost, thinned
from compress.report.looks import HELD_OUT, Look, looks
from compress.report.tables import per_step
from compress.report.terminal import printed

LONGEST_SETTINGS = 160

UNSEEN = Cell(Text("none yet", tone="missing"))

CURVE_ROWS = 12
"""How many points of a training curve its table shows."""


def chart_twin(run: RunRecord, cost: Cost, best: StepRecord | None) -> Table:
    """Return the figures a scatter chart is drawn from."""

    def cells(step: StepRecord) -> Iterator[Cell]:
        yield measured(figures.accuracy(step))
        yield figure(cost.of(step), lambda value: units.quantity(value, cost.unit))

    return Table(
        f"{cost.title}, as a table", ("Mean accuracy", cost.x_name), per_step(run.steps, best, cells)
    )


def curve_twin(step: StepRecord) -> Table:
    """Return the points of a training curve where something was evaluated, or evenly chosen ones."""
    seen = looks(step)
    points = thinned([point for point in step.curve if point.held_out] or step.curve, CURVE_ROWS)
    held_out = tuple({name: None for look in seen for name in look.held_out})
    tasks = tuple({name: None for look in seen for name in look.tasks})
    before = (
        Row("before training", "", (*(UNSEEN,) * 3, *_seen(look, held_out, tasks)))
        for look in seen
        if not look.tokens
    )
    rows = (
        Row(
            f"{units.count(point.tokens)} tokens",
            "",
            (
                figure(point.loss, lambda value: f"{units.significant(value)}{units.SPACE}nats"),
                figure(point.learning_rate, units.significant),
                figure(point.tokens_per_second, lambda value: units.quantity(value, "tokens/s")),
                *_seen(Look(point.tokens, point.held_out, point.tasks), held_out, tasks),
            ),
        )
        for point in points
    )
    headings = (
        HELD_OUT[name][0] if name in HELD_OUT else f"Held-out {name.replace('_', ' ')}" for name in held_out
    )
    columns = ("Loss", "Learning rate", "Training speed", *headings, *tasks)
    caption = f"Training of {step.name}: {len(points)} of {len(step.curve)} points"
    return Table(caption, columns, (*before, *rows), head="Seen")


def _seen(look: Look, held_out: Iterable[str], tasks: Iterable[str]) -> Iterator[Cell]:
    for name in held_out:
        unit = HELD_OUT[name][1] if name in HELD_OUT else ""
        yield figure(look.held_out.get(name), partial(units.quantity, unit=unit))
    for name in tasks:
        yield figure(look.tasks.get(name), units.share)


def everything(run: RunRecord) -> Table:
    """Return every measurement in the record, one a row, with all that was noted about it."""
    rows = tuple(
        Row(
            step.name,
            "",
            (
                words(one.name),
                words(", ".join(f"{key} {value}" for key, value in one.labels.items())),
                measured(one),
                words(f"{one.n:,} items".replace(",", units.SPACE) if one.n is not None else ""),
                words(", ".join(f"{name} {units.quantity(v, one.unit)}" for name, v in one.beside.items())),
                words(one.note or ""),
            ),
        )
        for step in run.steps
        for one in step.measurements
    )
    columns = ("Measurement", "Of", "Value", "Sample", "Taken beside", "Note")
    return Table("Every measurement", columns, rows)


def _settings(settings: Mapping[str, JsonValue]) -> str:
    """Return settings on one line, long ones cut."""
    text = ", ".join(f"{name} {printed(value)}" for name, value in settings.items() if value is not None)
    return text if len(text) <= LONGEST_SETTINGS else f"{text[:LONGEST_SETTINGS]}…"


def artifacts(run: RunRecord) -> Table:
    """Return the key of every artifact, and the artifacts it was made from."""
    rows = tuple(
        Row(
            step.name,
            step.use,
            (
                words(step.kind),
                words(step.key),
                words("\n".join(f"{name}: {key}" for name, key in step.inputs.items())),
            ),
        )
        for step in run.steps
    )
    return Table("Artifacts in the store", ("Kind", "Key", "Inputs"), rows)


def work(run: RunRecord) -> Table | None:
    """Return what was done for steps as results of their own; ``None`` where nothing was."""
    rows = tuple(
        Row(
            step.name,
            "",
            (
                words(child.use),
                words(child.how),
                words(_settings(child.settings)),
                figure(child.seconds, units.duration),
                words(child.key),
            ),
        )
        for step in run.steps
        for child in step.children
    )
    columns = ("Work", "Asked for", "Settings", "Time", "Key")
    return Table("Work done for steps", columns, rows) if rows else None


def environment(run: RunRecord) -> Table:
    """Return what the run ran on."""
    rows = tuple(Row(name, "", (words(value),)) for name, value in run.environment.items())
    return Table("Environment", ("Value",), rows, head="What")
