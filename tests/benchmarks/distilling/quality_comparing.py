"""From the quality benchmark's points to rows, intervals and targets.

Seeds and held-out documents are both samples, so intervals resample both (`pruning/comparing.py`); two methods are
compared on the same seeds and documents.

Shapes: S seeds, D documents.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pruning.comparing import Array, interval

from .quality import DOCUMENTS, Point

Results = dict[Point, dict[str, Any]]
Row = dict[str, Any]
CACHED_WITHIN, SCRATCH_AT_LEAST = 0.02, 2.0
"""Shares of the excess loss of `ours`."""


def figures(found: Results, teacher: str, tokens: int, method: str) -> dict[int, tuple[Array, Array]]:
    """Return excess loss over the teacher and KL to it, ``[D]`` each, of every seed that has been measured."""
    return {
        point.seed: (np.array(result["loss"]) - np.array(result["teacher_loss"]), np.array(result["kl"]))
        for point, result in sorted(found.items())
        if (point.teacher, point.tokens, point.method) == (teacher, tokens, method)
    }


def compared(found: Results, teacher: str, tokens: int, method: str) -> tuple[Array, Array] | None:
    """Return the excess loss of `ours` and of a method ``[S, D]`` on the seeds both have; nothing without any."""
    mine, theirs = (figures(found, teacher, tokens, name) for name in ("ours", method))
    if not (both := sorted(mine.keys() & theirs.keys())):
        return None
    return np.array([mine[seed][0] for seed in both]), np.array([theirs[seed][0] for seed in both])


def targets(found: Results) -> list[Row]:
    """Compare ours with every other method at every teacher and budget."""
    made = []
    for teacher, tokens in _cells(found):
        for method, judge in JUDGES.items():
            if both := compared(found, teacher, tokens, method):
                made.append({"name": f"{teacher}, {tokens:,} tokens: {method}", **judge(*both)})
    return made


def _labels(mine_SD: Array, theirs_SD: Array) -> Row:
    mean, low, high = interval(mine_SD - theirs_SD)
    return {
        "goal": "ours less labels at most 0",
        "measured": _said(mean, low, high, mine_SD),
        "met": mean <= 0,
    }


def _cached(mine_SD: Array, theirs_SD: Array) -> Row:
    mean, low, high = interval(theirs_SD - mine_SD)
    share = float(theirs_SD.mean() / mine_SD.mean() - 1)
    measured = f"{share:+.2%} of the excess; {_said(mean, low, high, mine_SD)}"
    goal = f"within {CACHED_WITHIN:.0%} of the excess loss of ours"
    return {"goal": goal, "measured": measured, "met": abs(share) <= CACHED_WITHIN}


def _top_k(mine_SD: Array, theirs_SD: Array) -> Row:
    mean, low, high = interval(theirs_SD - mine_SD)
    goal = "worse than ours: 95 % paired interval above 0"
    return {"goal": goal, "measured": _said(mean, low, high, mine_SD), "met": low > 0}


def _scratch(mine_SD: Array, theirs_SD: Array) -> Row:
    times = float(theirs_SD.mean() / mine_SD.mean())
    mean, low, high = interval(theirs_SD - mine_SD)
    goal = f"at least {SCRATCH_AT_LEAST:g} times the excess loss of ours"
    measured = f"{times:.2f} times; {_said(mean, low, high, mine_SD)}"
    return {"goal": goal, "measured": measured, "met": times >= SCRATCH_AT_LEAST}


JUDGES = {"labels": _labels, "ours, cached": _cached, "top-k": _top_k, "from scratch": _scratch}


def _said(mean: float, low: float, high: float, of_SD: Array) -> str:
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] nats/token, n={of_SD.size} seeds x documents"


def _cells(found: Results) -> list[tuple[str, int]]:
    return sorted({(point.teacher, point.tokens) for point in found})


def table(found: Results, starts: dict[str, Row]) -> Iterator[str]:
    """Yield the lines of the printed table: excess loss and KL to the teacher, with intervals."""
    yield f"{'teacher':7} {'tokens':>7} {'method':13} {'excess loss':27} {'KL':27} seeds"
    for teacher, start in starts.items():
        loss_1D = np.array([start["loss"]]) - np.array([start["teacher_loss"]])
        yield _line(teacher, 0, "only pruned", loss_1D, np.array([start["kl"]]))
    for teacher, tokens in _cells(found):
        for method in dict.fromkeys(point.method for point in found):
            if seeds := figures(found, teacher, tokens, method):
                loss_SD, kl_SD = (np.array([pair[i] for pair in seeds.values()]) for i in (0, 1))
                yield _line(teacher, tokens, method, loss_SD, kl_SD)


def _line(teacher: str, tokens: int, method: str, loss_SD: Array, kl_SD: Array) -> str:
    cells = "  ".join("{:7.4f} [{:7.4f}, {:7.4f}]".format(*interval(each)) for each in (loss_SD, kl_SD))
    return f"{teacher:7} {tokens:7,} {method:13} {cells}  {len(loss_SD)}"


def raw_rows(found: Results, starts: dict[str, Row]) -> Iterator[Row]:
    """Yield every point's means in nats a token over `n` documents, and those before recovery."""
    for teacher, start in starts.items():
        yield {"teacher": teacher, "method": "only pruned", "tokens": 0, **_means(start)}
    for point, result in found.items():
        named = {"teacher": point.teacher, "method": point.method, "tokens": point.tokens, "seed": point.seed}
        rate = {"learning_rate": point.learning_rate, "seconds": round(result["seconds"], 1)}
        yield {**named, **_means(result), **rate}


def _means(result: Row) -> Row:
    loss, teacher, kl = (float(np.mean(result[figure])) for figure in ("loss", "teacher_loss", "kl"))
    said = {"loss": round(loss, 5), "excess_loss": round(loss - teacher, 5), "kl": round(kl, 5)}
    return {**said, "unit": "nats/token", "n": DOCUMENTS}
