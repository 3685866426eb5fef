"""A run, and the difference of two, as plain text for a terminal."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

from compress.records import JsonValue, Measurement, RunRecord, StepRecord
from compress.report import figures, speed, units
from compress.report.text import visible
from compress.report.verdict import judge

Row = tuple[str, ...]


def summary(run: RunRecord) -> str:
    """Return what a run came to in a few lines: the verdict; the best student's size, quality, speed."""
    verdict = judge(run)
    lines = [verdict.headline]
    if run.rehearsal:
        lines.append("A rehearsal: every number is of a random tiny model and says nothing about yours.")
    elif verdict.best:
        lines += _aligned(_outline(run, verdict.best))
    lines += [f"- {finding.text}" for finding in verdict.findings]
    return visible("\n".join(lines))


def compare(a: RunRecord, b: RunRecord) -> str:
    """Return a table of what differs between two runs in settings, sizes and measurements."""
    sections = {
        "Run": _differing(_run_facts(a), _run_facts(b)),
        "Settings": _differing(_settings(a), _settings(b)),
        "Sizes": _differing(_sizes(a), _sizes(b)),
        "Measurements": _measured(a, b),
    }
    lines = []
    for title, rows in sections.items():
        if rows:
            lines += ["", *_aligned([(title, a.id, b.id, *[""] * (len(rows[0]) - 3)), *rows])]
    return visible("\n".join(lines[1:] or [f"{a.id} and {b.id} do not differ."]))


def _outline(run: RunRecord, best: StepRecord) -> list[Row]:
    reference = figures.original(run)
    rows = [("best student", f"{best.name} ({best.use})"), ("size", _size(best) + _beside(reference, _size))]
    rows.append(("quality", _quality(best) + _beside(reference, _quality)))
    if (change := figures.accuracy_change(best)) is not None:
        width = units.interval(change.low, change.high, "points")
        rows.append(("change", units.signed_points(change.value) + (f" (95 %: {width})" if width else "")))
    return [*rows, ("speed", _speed(run, best))]


def _beside(reference: StepRecord | None, words: Callable[[StepRecord], str]) -> str:
    return f"; original {words(reference)}" if reference else ""


def _size(step: StepRecord) -> str:
    return f"{units.file_size(step.disk_bytes)}, {units.count(step.realized.num_parameters)} parameters"


def _quality(step: StepRecord) -> str:
    quality = figures.accuracy(step)
    return f"{units.share(quality.value)} mean accuracy" if quality else units.NOT_MEASURED


def _speed(run: RunRecord, step: StepRecord) -> str:
    for profile in figures.profiles(run)[:1]:
        if taken := figures.paired(run, step, figures.TIME_PER_TOKEN, profile):
            faster = figures.times_faster(run, step)
            ends = figures.times_faster_interval(run, step)
            width = f" (95 %: {speed.interval_words(ends)})" if ends else " (may be noise: no interval)"
            beside = f", {units.ratio(faster)} the original's speed{width}" if faster is not None else ""
            return f"{units.quantity(taken.value, taken.unit)} per output token{beside}{_to_rival(run, step)}"
    return units.NOT_MEASURED


def _to_rival(run: RunRecord, step: StepRecord) -> str:
    """How fast it is beside the original in its own runtime, where that was measured."""
    found, rival = figures.times_faster_than_rival(run, step), figures.rival_in_runtime(run, step)
    if not found or not rival:
        return ""
    width = f" (95 %: {speed.interval_words(found[1])})" if found[1] else ""
    return f", {units.ratio(found[0])} that of {rival.name}{width}"


def _run_facts(run: RunRecord) -> dict[str, str]:
    facts = {"name": run.name, "status": run.status, "rehearsal": str(run.rehearsal), "seed": str(run.seed)}
    facts |= {"tasks": ", ".join(run.tasks), "time": units.duration(run.seconds)}
    return facts | {f"environment.{key}": value for key, value in run.environment.items()}


def _settings(run: RunRecord) -> dict[str, str]:
    rows: dict[str, str] = {}
    for step in run.steps:
        rows |= {f"{step.name}.use": step.use, f"{step.name}.from": step.parent or "nothing"}
        rows |= dict(flattened(step.settings, step.name))
    return rows


def flattened(settings: JsonValue, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield nested settings as dotted keys and printed values, in the order they have."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, printed(settings)


def printed(value: JsonValue) -> str:
    """Return a setting or fact as one writes it: a string as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sizes(run: RunRecord) -> dict[str, str]:
    rows: dict[str, str] = {}
    for step in run.steps:
        rows[f"{step.name} parameters"] = units.count(step.realized.num_parameters)
        rows[f"{step.name} weights"] = units.file_size(step.realized.weight_bytes)
        rows[f"{step.name} on disk"] = units.file_size(step.disk_bytes)
    return rows


def _differing(a: dict[str, str], b: dict[str, str]) -> list[Row]:
    keys = [*a, *(key for key in b if key not in a)]
    return [(key, a.get(key, "absent"), b.get(key, "absent")) for key in keys if a.get(key) != b.get(key)]


def _measured(a: RunRecord, b: RunRecord) -> list[Row]:
    left, right = _measurements(a), _measurements(b)
    rows: list[Row] = []
    for key in [*left, *(key for key in right if key not in left)]:
        mine, other = left.get(key), right.get(key)
        if mine is None or other is None or mine.value != other.value:
            rows.append((key, _value(mine), _value(other), _difference(mine, other)))
    return rows


def _measurements(run: RunRecord) -> dict[str, Measurement]:
    return {
        " ".join([step.name, one.name, *(f"{key}={value}" for key, value in one.labels.items())]): one
        for step in run.steps
        for one in step.measurements
    }


def _value(measurement: Measurement | None) -> str:
    return units.quantity(measurement.value, measurement.unit) if measurement else units.NOT_MEASURED


def _difference(a: Measurement | None, b: Measurement | None) -> str:
    if a is None or b is None or a.unit != b.unit:
        return ""
    if a.unit == "share":
        return units.signed_points(b.value - a.value)
    return units.ratio(b.value / a.value) if a.value else ""


def _aligned(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
