"""What was seen of a training on the way, and whether it helped.

The look before the first step counts as much as the last: without it nobody can tell what training did.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compress.records import StepRecord
from compress.report import units
from compress.report.finding import Finding

NATS = f"{units.SPACE}nats per token"


HELD_OUT = {
    "loss": ("Held-out loss", "nats"),
    "kl": ("KL to the teacher", "nats"),
    "same_top": ("Same top token as the teacher", "share"),
    "teacher_entropy": ("Entropy of the teacher", "nats"),
    "student_entropy": ("Entropy of the student", "nats"),
    "label_loss": ("Loss on the text itself", "nats"),
}
"""What a figure of held-out text is called, and its unit."""


@dataclass(frozen=True)
class Look:
    """One evaluation: figures of held-out text, and the accuracy on each watched task."""

    tokens: int
    held_out: Mapping[str, float]
    tasks: Mapping[str, float]

    @property
    def loss(self) -> float | None:
        """The held-out loss in nats per token, where it is a number."""
        return finite(self.held_out.get("loss"))


def looks(step: StepRecord) -> list[Look]:
    """Return every evaluation on the way, the one before the first step (at zero tokens) first."""
    before = step.facts.get("before")
    first = [Look(0, before["held_out"], before["tasks"])] if before else []
    return first + [Look(p.tokens, p.held_out, p.tasks) for p in step.curve if p.held_out or p.tasks]


def before_and_after(step: StepRecord) -> tuple[Look, Look] | None:
    """Return the look before training and the one at what was kept of it; ``None`` where either is missing."""
    seen = looks(step)
    if not seen or seen[0].tokens:
        return None
    kept = step.facts.get("kept_tokens", seen[-1].tokens)
    after = next((look for look in seen if look.tokens == kept), None)
    return (seen[0], after) if after else None


def kept_nothing(step: StepRecord) -> bool:
    """Return whether the weights from before the first step were the best, and kept."""
    return bool(step.curve) and step.facts.get("kept_tokens") == 0


def finite(value: object) -> float | None:
    """Return a number; ``None`` for what is none, or not finite (which JSON can only say in words)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def did_not_help(step: StepRecord) -> Iterator[Finding]:
    """Yield, for the verdict, that a training brought nothing on text it did not learn from."""
    pair = before_and_after(step)
    before, after = (pair[0].loss, pair[1].loss) if pair else (None, None)
    if kept_nothing(step):
        held = "" if before is None else f" ({units.significant(before)}{NATS})"
        text = f"Training {step.name} did not help: the weights of before were kept"
        yield Finding("bad", f"{text}, because its held-out loss was never lower than theirs{held}.")
    elif before is not None and after is not None and after >= before:
        change = f"from {units.significant(before)} to {units.significant(after)}{NATS}"
        text = f"Training {step.name} did not help by its held-out loss, which went {change}"
        yield Finding("bad", f"{text}; its last weights were kept all the same.")


def comments(step: StepRecord) -> Iterator[Finding]:
    """Yield what to know of a training beside its charts."""
    unhelpful = list(did_not_help(step))
    yield from unhelpful
    pair = before_and_after(step)
    if pair and pair[1].tokens:
        yield from _compared(step, *pair, with_loss=not unhelpful)
    yield from _stop(step)
    yield from not_to_the_bit(step)


def not_to_the_bit(step: StepRecord) -> Iterator[Finding]:
    """Yield that a step's result would not come out the same again, and why."""
    if step.facts.get("bit_exact", True):
        return
    why = step.facts.get("bit_exact_ended_by", "why was not recorded")
    yield Finding("warn", f"{step.name} would not come out the same to the bit again: {why}.")


def _compared(step: StepRecord, before: Look, after: Look, with_loss: bool) -> Iterator[Finding]:
    when = "at the end" if step.facts.get("kept_tokens") is None else "in the weights that were kept"
    if with_loss and before.loss and after.loss is not None:
        fell = f"{round(100 * (1 - after.loss / before.loss))}{units.SPACE}% lower"
        values = f"{units.significant(before.loss)} before training, {units.significant(after.loss)} {when}"
        yield Finding("good", f"Held-out loss, nats per token: {values} ({fell}).")
    for task, share in after.tasks.items():
        if task in before.tasks:
            values = f"{units.share(before.tasks[task])} before training, {units.share(share)} {when}"
            yield Finding("plain", f"{task}: {values}.")


def _stop(step: StepRecord) -> Iterator[Finding]:
    if step.facts.get("stopped_early") and step.curve:
        seen, asked = step.curve[-1].tokens, step.settings.get("tokens")
        of = f" of {units.count(asked)}" if isinstance(asked, int) else ""
        kept = units.count(step.facts.get("kept_tokens", seen))
        text = f"Stopped early, after {units.count(seen)}{of} tokens: the held-out loss fell no further"
        yield Finding("plain", f"{text}. What it was after {kept} tokens was kept.")
