"""Whether a model answers better than one who picks options at random."""

from collections.abc import Iterator

from compress.records import Measurement, RunRecord, StepRecord
from compress.report import figures, units
from compress.report.finding import Finding


def cannot_be_told_apart(run: RunRecord, best: StepRecord) -> Iterator[Finding]:
    """Yield that the answers of the original, or of a student, cannot be told from guessing, where that is so.

    It is of the mean over the tasks where all can be guessed, else of each task that can.
    """
    chance = figures.chance(run)
    for step in (figures.original(run), best):
        quality = figures.accuracy(step) if step else None
        if step is None or quality is None:
            continue
        text = f"The answers of {step.name} cannot be told from guessing"
        if chance is not None and _lowest(quality) <= chance:
            yield Finding("bad", f"{text} ({_by_chance(chance)}).")
        elif chance is None and (tasks := ", ".join(_guessed(run, step))):
            yield Finding("warn", f"{text} in {tasks}.")


def _guessed(run: RunRecord, step: StepRecord) -> Iterator[str]:
    for accuracy in figures.accuracies(step):
        task = str(accuracy.labels.get("task"))
        level = figures.chance_of(run, task)
        if level is not None and _lowest(accuracy) <= level:
            yield f"{task} ({_by_chance(level)})"


def _lowest(accuracy: Measurement) -> float:
    return accuracy.value if accuracy.low is None else accuracy.low


def _by_chance(level: float) -> str:
    return f"{units.share(level)} right by chance"
