"""Whether a training ended worse than it began, which a short one with a high learning rate easily does."""

from collections.abc import Mapping, Sequence
from typing import Any

NOTABLE = 0.02
"""Share of the first loss by which the last ones are higher, all of them: batches differ, but seldom so."""
LAST_SHARE = 4
"""Of the curve's points without held-out text, the last quarter is the end."""
FEWEST_POINTS = 2

HELPS = "A lower `learning_rate`, more `tokens` or a longer `warmup` may help"


def decline(curve: Sequence[Mapping[str, Any]], before: Mapping[str, float] | None) -> str | None:
    """Return what to say of a training whose end is worse than its start; ``None`` where it is not.

    `curve`: its points, each with the training ``loss`` and, where it was evaluated, ``held_out``. `before`: the
    held-out means before the first step, which decide where there are any.
    """
    if before:
        seen = [point["held_out"]["loss"] for point in curve if point.get("held_out")]
        first, last, what = before["loss"], seen[-1:], "held-out loss"
    elif len(losses := [point["loss"] for point in curve]) < FEWEST_POINTS:
        return None
    else:
        first, last, what = losses[0], losses[-max(1, len(losses) // LAST_SHARE) :], "loss"
    if not last or min(last) <= first * (1 + NOTABLE):
        return None
    end = sum(last) / len(last)
    return f"the training ended worse than it began: its {what} rose from {first:.3f} to {end:.3f}. {HELPS}"
