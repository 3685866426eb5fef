"""The tables of the report: what each step made, what it took, and how every model did.

Each is a list of rows over the run's steps, in their order; each number in them is a field of the record, or
the difference or ratio of two.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from compress.records import Measurement, RunRecord, StepRecord
from compress.report import figures, units
from compress.report.cells import (
    MISSING,
    REFERENCE,
    Cell,
    Row,
    Table,
    Text,
    change_text,
    figure,
    measured,
    spread,
    words,
)
from compress.report.charts import kind_of

RESULT_COLUMNS = (
    "Parameters",
    "On disk",
    "Mean accuracy",
    "Change from original",
    "Change from parent",
    "KL divergence",
    "Same top token",
    "Perplexity",
)

EFFORT_COLUMNS = ("Time", "Peak memory", "Parameters", "Weight bytes")

SPEED_NOTE = (
    "Speeds and prices are the original's own, times the ratio of the two models timed in turns: what is measured at "
    "different moments does not compare. Memory is of each model's own process."
)

SPEED_COLUMNS = {
    "time_to_first_token": "Time to first token",
    "time_per_output_token": "Time per output token",
    "time_per_pass": "Time of a pass",
    "tokens_per_second": "Output speed",
    "prefill_tokens_per_second": "Prompt speed",
    "peak_memory_growth": "Memory of model and runtime",
    "peak_memory": "Peak memory, Python and all",
    "load_memory": "Memory to load",
    "usd_per_million_input_tokens": "Price of 1 M input tokens",
    "usd_per_million_output_tokens": "Price of 1 M output tokens",
}


def results(run: RunRecord, best: StepRecord | None) -> Table:
    """Return what each step made: size and quality, against the original and the parent."""
    note = (
        "Accuracy is the mean over the tasks; small figures are 95 % intervals, paired by item for changes. "
        "KL divergence and same top token compare each next-token prediction with the original's, on "
        "held-out text."
    )
    rows = per_step(run.steps, best, partial(_result, run))
    return Table("What each step made", RESULT_COLUMNS, rows, note)


def effort(run: RunRecord, best: StepRecord | None) -> Table:
    """Return what each step took, and what the plan had predicted beside it."""
    note = "Beneath each figure: what the plan said of it, from the settings alone, before anything ran."
    return Table("What each step took", EFFORT_COLUMNS, per_step(run.steps, best, _taken), note)


def tasks(run: RunRecord, best: StepRecord | None) -> Table | None:
    """Return accuracy for each task and step, with change and flips; None where no task was measured."""
    names = _task_names(run)
    if not names:
        return None
    by_chance = tuple(figure(figures.chance_of(run, name), units.share) for name in names)
    rows = per_step(run.steps, best, partial(_per_task, names))
    note = (
        "Beneath each accuracy: its 95 % interval, the paired change from the original, and flips: the "
        "share of items whose answer changed from right to wrong or back."
    )
    return Table("Accuracy by task", names, (Row("guessing", "chance level", by_chance), *rows), note)


def speed(run: RunRecord, best: StepRecord | None) -> list[Table]:
    """Return one table of latency, memory and price for each profile measured."""
    found = []
    for profile in figures.profiles(run):
        taken = {name for name in SPEED_COLUMNS for s in run.steps if figures.within(s, name, profile)}
        shown = [name for name in SPEED_COLUMNS if name in taken]
        rows = per_step(run.steps, best, partial(_speed, run, profile, shown))
        headings = ("Runtime", *(SPEED_COLUMNS[name] for name in shown))
        found.append(Table(f"At {figures.profile_name(profile)}", headings, rows, SPEED_NOTE))
    return found


def per_step(
    steps: Iterable[StepRecord], best: StepRecord | None, cells: Callable[[StepRecord], Iterable[Cell]]
) -> tuple[Row, ...]:
    """Return a row for each step, headed by its name and drawn by its kind."""
    return tuple(_row(step, kind_of(step, best), cells(step)) for step in steps)


def _row(step: StepRecord, kind: str, cells: Iterable[Cell]) -> Row:
    mark = {"best": ", chosen", "baseline": ", baseline"}.get(kind, "")
    return Row(step.name, step.use + mark, tuple(cells), kind)


def _result(run: RunRecord, step: StepRecord) -> Iterator[Cell]:
    is_reference = step.role == "original"
    smaller = figures.times_smaller(run, step)
    yield figure(step.realized.num_parameters, units.count)
    relative = [] if is_reference or not smaller else [1 / smaller]
    notes = (Text(f"{units.ratio(times)} original", (times,)) for times in relative)
    yield figure(step.disk_bytes, units.file_size, *notes)
    yield measured(figures.accuracy(step))
    yield REFERENCE if is_reference else _change(step)
    yield REFERENCE if is_reference else _change_from_parent(run, step)
    for name in ("kl_divergence", "same_top_token"):
        found = figures.find(step, name)
        yield REFERENCE if is_reference and found is None else _compared(step, found)
    yield measured(figures.find(step, "perplexity"))


def _compared(step: StepRecord, found: Measurement | None) -> Cell:
    """Return a figure of what two models read alike, with the share that is where their cuts of the text differ."""
    coverage = figures.find(step, "kl_coverage")
    if coverage is None:
        return measured(found, interval=False)
    share = units.share(coverage.value)
    if found is None:
        note = Text(f"{share} of positions read alike", (coverage.value,))
        return Cell(Text("not comparable", tone="missing"), (note,))
    return measured(found, Text(f"at {share} of positions", (coverage.value,)), interval=False)


def _change(step: StepRecord) -> Cell:
    change = figures.accuracy_change(step)
    return Cell(change_text(change), spread(change, "points")) if change else MISSING


def _change_from_parent(run: RunRecord, step: StepRecord) -> Cell:
    built_on = figures.parent(run, step)
    if built_on is None:
        return Cell(Text("no parent here", tone="missing"))
    before, after = figures.accuracy(built_on), figures.accuracy(step)
    return figure(after.value - before.value if after and before else None, units.signed_points)


def _taken(step: StepRecord) -> Iterator[Cell]:
    stored = (Text("from the store"),) if step.cached else ()
    estimate = _planned("estimated", step.estimated_seconds, units.duration)
    yield figure(step.seconds or None, units.duration, *estimate, *stored)
    estimate = _planned("estimated", step.estimated_peak_memory_bytes, units.memory)
    yield figure(step.peak_memory_bytes or None, units.memory, *estimate)
    predicted, realized = step.predicted, step.realized
    about = step.is_about
    yield _prediction(predicted.num_parameters, realized.num_parameters, units.count, about)
    yield _prediction(predicted.weight_bytes, realized.weight_bytes, units.file_size, about)


def _planned(word: str, value: float | None, write: Callable[[float], str]) -> tuple[Text, ...]:
    return () if value is None else (Text(f"{word} {write(value)}", (value,)),)


def _prediction(predicted: int, realized: int, write: Callable[[float], str], is_about: bool) -> Cell:
    """Return what was made, and what the plan said; where that was a guess, missing it is no fault."""
    if is_about:
        return figure(realized, write, *_planned("planned: about", predicted, write))
    difference = abs(predicted - realized)
    if not difference:
        return figure(realized, write, *_planned("exactly the predicted", predicted, write))
    off = Text(f"off by {write(difference)}", (difference,), "worse")
    return figure(realized, write, *_planned("predicted", predicted, write), off)


def _per_task(names: Iterable[str], step: StepRecord) -> Iterator[Cell]:
    for name in names:
        labels = {"task": name}
        accuracy = figures.find(step, "accuracy", labels)
        change, flips = (figures.find(step, other, labels) for other in ("accuracy_change", "flips"))
        notes = [change_text(change)] if change else []
        if flips:
            notes.append(Text(f"{units.share(flips.value)} flips", (flips.value,)))
        yield measured(accuracy, *notes) if accuracy else _other_metric(step, name)


def _other_metric(step: StepRecord, task: str) -> Cell:
    """A task without right and wrong answers is shown by its first share, or its first metric, named."""
    of_task = [one for one in step.measurements if one.labels.get("task") == task]
    found = next((one for one in of_task if one.unit == "share"), of_task[0] if of_task else None)
    return measured(found, Text(found.name)) if found else MISSING


def _task_names(run: RunRecord) -> tuple[str, ...]:
    found = [str(m.labels["task"]) for s in run.steps for m in s.measurements if "task" in m.labels]
    return tuple(dict.fromkeys([*run.tasks, *found])) if found else ()


def _speed(run: RunRecord, profile: figures.Labels, names: Iterable[str], step: StepRecord) -> Iterator[Cell]:
    built_on = figures.parent(run, step)
    yield words(figures.runtime(step) or units.NOT_MEASURED)
    for name in names:
        beside: list[tuple[str, float | None]] = []
        if step.role != "original":
            beside.append(("original", figures.to_original(run, step, name, profile)))
        if built_on is not None and built_on.role != "original":
            beside.append((built_on.name, figures.to_parent(run, step, name, profile)))
        rival, ratio = figures.rival_in_runtime(run, step), figures.within(step, figures.TO_RIVAL, profile)
        if name == figures.TIME_PER_TOKEN and rival and ratio:
            beside.append((f"{rival.name}, in turns", ratio.value))
        notes = (
            Text(f"{units.ratio(value)} {whom}", (value,)) for whom, value in beside if value is not None
        )
        yield measured(figures.paired(run, step, name, profile), *notes)
