"""Looking things up in a record: which model is which, and how one figure stands to the original's."""

from collections.abc import Mapping

from compress.records import Measurement, RunRecord, StepRecord

Labels = Mapping[str, str | int]

TIME_PER_TOKEN = "time_per_output_token"

TIME_RATIO = "time_per_output_token_ratio"
"""Of the model and the original, timed in turns: the 95 % interval is that of rounds compared one by one."""

TO_RIVAL = "time_per_output_token_to_rival"
"""The same of the model and the original in the model's own runtime."""

RUNTIME_NAMES = {"onnxruntime": "ONNX Runtime"}
"""How runtimes are spelled that spell themselves differently."""

SPEED = (
    TIME_PER_TOKEN,
    "time_to_first_token",
    "time_per_pass",
    "tokens_per_second",
    "prefill_tokens_per_second",
)
"""What is measured once per profile: per batch size and prompt length."""


def find(step: StepRecord, name: str, labels: Labels | None = None) -> Measurement | None:
    """Return the measurement of that name and exactly those labels; if none are given, the least labelled."""
    named = [one for one in step.measurements if one.name == name and labels in (None, one.labels)]
    return min(named, key=lambda one: len(one.labels), default=None)


def within(step: StepRecord, name: str, profile: Labels) -> Measurement | None:
    """Return the measurement of that name taken in a profile, or that holds whatever the profile."""
    for measurement in step.measurements:
        if measurement.name == name and measurement.labels.items() <= profile.items():
            return measurement
    return None


def original(run: RunRecord) -> StepRecord | None:
    """Return the model everything is compared with, where the run got so far."""
    return next((step for step in run.steps if step.role == "original"), None)


def parent(run: RunRecord, step: StepRecord) -> StepRecord | None:
    """Return the step this one was built on, where the run holds it."""
    return next((other for other in run.steps if other.name == step.parent), None)


def baselines(run: RunRecord) -> list[StepRecord]:
    """Return the rivals: what a user would take instead of a student."""
    return [step for step in run.steps if step.role == "baseline"]


def rival_in_runtime(run: RunRecord, step: StepRecord) -> StepRecord | None:
    """Return the original as a file of the same kind as a student: what is honestly compared with it."""
    return next((each for each in run.steps if step.name in each.rival_of), None)


def runtime(step: StepRecord) -> str | None:
    """Return what computed a model's answers, without version: ``ONNX Runtime``; None where it was not recorded."""
    said = next((m.runtime for m in step.measurements if m.runtime), None)
    name = said.split()[0].rstrip(",") if said else None
    return RUNTIME_NAMES.get(name, name) if name else None


def is_elsewhere(run: RunRecord, step: StepRecord) -> bool:
    """Return whether a model computes in another runtime than the original; by its kind in older records."""
    reference = original(run)
    if reference is None or step.name == reference.name:
        return False
    ours, theirs = runtime(step), runtime(reference)
    return ours != theirs if ours and theirs else step.kind == "onnx"


def accuracy(step: StepRecord) -> Measurement | None:
    """Return the mean accuracy over the run's tasks."""
    return find(step, "mean_accuracy")


def accuracy_change(step: StepRecord) -> Measurement | None:
    """Return the change of mean accuracy from the original, with its paired interval."""
    return find(step, "mean_accuracy_change") or find(step, "accuracy_change", {})


def chance(run: RunRecord) -> float | None:
    """Return the mean accuracy of guessing over the tasks that have an accuracy; None where one is unknown."""
    tasks = {str(m.labels.get("task")) for s in run.steps for m in s.measurements if m.name == "accuracy"}
    levels = [chance_of(run, task) for task in sorted(tasks)]
    known = [level for level in levels if level is not None]
    return sum(known) / len(known) if known and len(known) == len(levels) else None


def chance_of(run: RunRecord, task: str) -> float | None:
    """Return the accuracy of guessing on a task, as measured of its items, or as the run's record has it."""
    found = (m.chance for step in run.steps for m in accuracies(step) if m.labels.get("task") == task)
    return next((level for level in found if level is not None), run.chance.get(task))


def accuracies(step: StepRecord) -> list[Measurement]:
    """Return a step's accuracy on each task."""
    return [m for m in step.measurements if m.name == "accuracy"]


def profiles(run: RunRecord) -> list[Labels]:
    """Return the settings speed was measured at, smallest batch and shortest prompt first."""
    found: list[Labels] = []
    for step in run.steps:
        for measurement in step.measurements:
            if measurement.name in SPEED and measurement.labels not in found:
                found.append(measurement.labels)
    return sorted(found, key=lambda labels: [_as_int(labels.get(k)) for k in ("batch_size", "prompt_tokens")])


def profile_name(profile: Labels) -> str:
    """Return a profile in words: ``batch 1, prompt of 128 tokens``."""
    prompt = f", prompt of {profile['prompt_tokens']} tokens" if "prompt_tokens" in profile else ""
    return f"batch {profile.get('batch_size', 'not named')}{prompt}"


def to_original(run: RunRecord, step: StepRecord, name: str, labels: Labels) -> float | None:
    """Return a figure divided by the original's.

    The original's figure of the same process and alternation is taken where there is one: that ratio
    survives a noisy machine. Otherwise the original's own measurement is.
    """
    reference = original(run)
    mine = within(step, name, labels)
    if mine is None or reference is None:
        return None
    if step.name == reference.name:
        return 1.0
    if "original" in mine.beside:
        return _divided(mine.value, mine.beside["original"])
    theirs = within(reference, name, labels)
    return _divided(mine.value, theirs.value) if theirs else None


def paired(run: RunRecord, step: StepRecord, name: str, labels: Labels) -> Measurement | None:
    """Return a figure as it would be beside the original's own: its ratio to the original, timed in turns with it, of
    the original's figure.

    What was measured at different moments contradicts those ratios, on a machine with neighbours by factors. Where
    nothing was taken beside it, or nothing is known of the original, it is the figure as it was measured.
    """
    mine, reference = within(step, name, labels), original(run)
    theirs = within(reference, name, labels) if reference else None
    if mine is None or theirs is None or "original" not in mine.beside:
        return mine
    relative = to_original(run, step, name, labels)
    if relative is None:
        return mine
    return mine.model_copy(update={"value": relative * theirs.value, "low": None, "high": None})


def to_parent(run: RunRecord, step: StepRecord, name: str, labels: Labels) -> float | None:
    """Return a figure divided by its parent's, through both ratios to the original."""
    built_on = parent(run, step)
    mine = to_original(run, step, name, labels)
    theirs = to_original(run, built_on, name, labels) if built_on else None
    return _divided(mine, theirs) if mine is not None and theirs is not None else None


def times_smaller(run: RunRecord, step: StepRecord) -> float | None:
    """Return how many times fewer bytes a step's files take than the original's."""
    reference = original(run)
    return _divided(reference.disk_bytes, step.disk_bytes) if reference else None


def times_faster(run: RunRecord, step: StepRecord) -> float | None:
    """Return how many times sooner than the original a step writes a token, at the smallest profile."""
    smallest = next(iter(profiles(run)), None)
    relative = to_original(run, step, TIME_PER_TOKEN, smallest) if smallest is not None else None
    return _divided(1.0, relative) if relative is not None else None


def times_faster_interval(run: RunRecord, step: StepRecord) -> tuple[float, float] | None:
    """Return the 95 % interval of `times_faster`; ``None`` where none was recorded, and it may all be noise."""
    smallest = next(iter(profiles(run)), None)
    ratio = within(step, TIME_RATIO, smallest) if smallest is not None else None
    if ratio is None or not ratio.low or not ratio.high:
        return None
    return 1 / ratio.high, 1 / ratio.low


def times_smaller_than(rival: StepRecord, step: StepRecord) -> float | None:
    """Return how many times fewer bytes a step's files take than a rival's."""
    return _divided(rival.disk_bytes, step.disk_bytes)


def times_faster_than_rival(
    run: RunRecord, step: StepRecord
) -> tuple[float, tuple[float, float] | None] | None:
    """Return how many times sooner a step writes a token than the original in its runtime, and the 95 % interval.

    The two were timed in turns in one process. None where they were not.
    """
    smallest = next(iter(profiles(run)), None)
    ratio = within(step, TO_RIVAL, smallest) if smallest is not None else None
    if ratio is None or not ratio.value:
        return None
    ends = (1 / ratio.high, 1 / ratio.low) if ratio.low and ratio.high else None
    return 1 / ratio.value, ends


def _divided(value: float, by: float) -> float | None:
    return value / by if by else None


def _as_int(label: str | int | None) -> int:
    return label if isinstance(label, int) else 0
