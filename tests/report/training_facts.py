"""A training that was watched: the made-up quickstart's recovery, looked at before and on the way."""

import math
from typing import Any

from compress.records import RunRecord, StepRecord
from tests.report.sample_run import sample_run, with_step

LOOKS = {36: 0.8, 73: 0.5, 110: 0.6, 146: 0.7}
"""Held-out loss after these steps: lowest at the second look."""

BEFORE = {"held_out": {"loss": 1.9, "kl": 1.2}, "tasks": {"world_sums": 0.25}}


def watched_step(losses: dict[int, float] = LOOKS, kl: float = 0.25, **facts: Any) -> StepRecord:
    """The recovery, with the held-out losses and these facts beside what was seen before it."""
    step = sample_run().step("recover")
    points = tuple(
        point.model_copy(update={"held_out": {"loss": losses[i], "kl": kl}, "tasks": {"world_sums": 0.5}})
        if i in losses
        else point
        for i, point in enumerate(step.curve)
    )
    lowest = min(filter(math.isfinite, losses.values()))
    known = {"before": BEFORE, "best_held_out_loss": lowest} | facts
    return step.model_copy(update={"curve": points, "facts": known})


def watched_run(**facts: Any) -> RunRecord:
    """The quickstart with that recovery."""
    step = watched_step(**facts)
    return with_step(sample_run(), "recover", curve=step.curve, facts=step.facts)
