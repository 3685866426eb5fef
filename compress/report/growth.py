"""Results that quantizing or exporting did not make smaller, and why."""

from collections.abc import Iterator

from compress.records import RunRecord, StepRecord
from compress.report import units
from compress.report.finding import Finding

MOSTLY = 1 / 2
"""Share of a file from which on it is mostly its vocabulary."""
MUCH = 1 / 3
SHRINKS = "prune.vocab"
"""The step that drops tokens."""


def grown(run: RunRecord) -> Iterator[Finding]:
    """Yield what is larger than what it was made from, or mostly its vocabulary, with what would help."""
    sizes = {step.name: step.realized.weight_bytes for step in run.steps}
    fewer = (
        f"fewer tokens in {SHRINKS}"
        if any(step.use == SHRINKS for step in run.steps)
        else f"{SHRINKS} before it"
    )
    for step in run.steps:
        if step.role == "student" and step.kind != "hf" and step.parent in sizes:
            yield from _of(step, sizes[step.parent], fewer)


def _of(step: StepRecord, before: int, fewer: str) -> Iterator[Finding]:
    size, rows = step.realized.weight_bytes, step.facts.get("vocabulary_bytes")
    share = rows / max(1, size) if isinstance(rows, int) else 0.0
    if size <= before and share <= MOSTLY:
        return
    text = f"{step.name}'s weights take {units.file_size(size)}"  # a file holds more than weights
    text += f", more than {step.parent}'s ({units.file_size(before)})" if size > before else ""
    if share > MUCH:
        text += (
            f": {units.share(share)} of them are the rows of its vocabulary; {fewer} would make it smaller."
        )
    else:
        text += ": they are kept in more bits; quantize before it is exported."
    yield Finding("warn" if size > before else "plain", text)
