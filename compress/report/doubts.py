"""What makes a student another model than the original, however well it does on the tasks."""

from collections.abc import Iterator

from compress.records import StepRecord
from compress.report import figures, units
from compress.report.finding import Finding

MOST_NATS = 0.5
"""Mean divergence a token above which a student is not recommended without a word."""
FEWEST_SAME = 0.6
"""Share of positions at which both would choose the same token, below which it is not either."""


def strays(step: StepRecord) -> bool:
    """Return whether a student's predictions are far from the original's."""
    return any(True for _ in other_model(step))


def is_better(step: StepRecord) -> bool:
    """Return whether a student answers more than the original does: there is nothing to bring back."""
    change = figures.accuracy_change(step)
    return change is not None and change.value > 0


def other_model(step: StepRecord) -> Iterator[Finding]:
    """Yield how far a student's predictions are from the original's, where that is far, and what that means."""
    kl, same = figures.find(step, "kl_divergence"), figures.find(step, "same_top_token")
    far = []
    if kl is not None and kl.value > MOST_NATS:
        far.append(f"they diverge by {units.quantity(kl.value, kl.unit)}")
    if same is not None and same.value < FEWEST_SAME:
        far.append(f"the most likely token is the same at only {units.share(same.value)} of positions")
    if far:
        text = f"{step.name} is another model than the original on held-out text: {' and '.join(far)}"
        advice = "" if is_better(step) else "; more recovery may bring it back"
        yield Finding("warn", f"{text}. What the tasks do not ask may be lost{advice}.")
