"""Our excess loss as a share of the rival's, with its 95 % interval, and the table that says it.

Seeds are pairs: both methods read the same calibration rows. The mean is that of the logarithms, with Student's
interval over seeds. Where there is one seed, the interval is over the held-out rows: the 2.5 % and 97.5 % quantiles of
the ratio of the means over bootstrap draws.

Shapes: S seeds, N held-out rows.
"""

from collections.abc import Container, Iterator
from dataclasses import replace
from math import exp, inf, log, sqrt
from typing import Any

import numpy as np
from scipy.stats import t

from compress.measure.statistics import Interval

from .real_methods import RIVAL
from .real_points import Point, Result

DRAWS = 4000
GOALS = {"before": (0.5, inf), "after": (0.8, 0.9)}
"""What a ratio may be at most, and below what its interval must end, before and after recovery."""
Array = np.ndarray[Any, np.dtype[np.float64]]
Group = tuple[int, str, float, str, str]
"""Tokens of recovery, axis, share, phase, which of our methods."""


def targets(found: dict[Point, Result]) -> list[dict[str, Any]]:
    """Return, for every axis and share that the rival has been measured at, how each of our methods compares."""
    compared = dict(_pairs(found))
    return [
        _target(group, pairs_S2N)
        for group, pairs_S2N in compared.items()
        if not _said_before(group, compared)
    ]


def ratio(pairs_S2N: list[tuple[Array, Array]]) -> Interval | None:
    """Return mean excess of ours / the rival's; ``None`` where one of them lost nothing."""
    means = [(float(ours_N.mean()), float(theirs_N.mean())) for ours_N, theirs_N in pairs_S2N]
    if min(min(pair) for pair in means) <= 0:
        return None
    logs = [log(ours / theirs) for ours, theirs in means]
    if len(logs) == 1:
        return _over_rows(*pairs_S2N[0])
    mean = float(np.mean(logs))
    margin = float(t.ppf(0.975, len(logs) - 1)) * float(np.std(logs, ddof=1)) / sqrt(len(logs))
    return Interval(exp(mean), exp(mean - margin), exp(mean + margin))


def table(found: dict[Point, Result]) -> Iterator[str]:
    """Yield the lines of the printed table: mean excess loss of both, and their ratio."""
    head = f"{'method':13} {'axis':8} {'share':>5} {'recovered on':>12} {'phase':6}  {'excess':>8} {'Minitron':>8}"
    yield f"{head}   ratio"
    for (tokens, axis, share, phase, method), pairs_S2N in _pairs(found):
        ours, theirs = (np.mean([pair[side].mean() for pair in pairs_S2N]) for side in (0, 1))
        named = f"{method:13} {axis:8} {share:5.0%} {tokens or '':12} {phase:6}"
        yield f"{named}  {ours:8.4f} {theirs:8.4f}   {_said(ratio(pairs_S2N), pairs_S2N)}"


def _pairs(found: dict[Point, Result]) -> Iterator[tuple[Group, list[tuple[Array, Array]]]]:
    """Yield the excess loss by row of one of ours and of the rival, for every seed that both were measured with."""
    groups: dict[Group, dict[int, tuple[Array, Array]]] = {}
    for point, result in found.items():
        rival = found.get(replace(point, method=RIVAL))
        if point.method == RIVAL or rival is None:
            continue
        for phase in [phase for phase in GOALS if phase in result and phase in rival]:
            group = (point.tokens, point.axis, point.share, phase, point.method)
            own_N, rival_N = (np.array(each[phase]["loss"]) for each in (result, rival))
            groups.setdefault(group, {})[point.seed] = (own_N, rival_N)
    for group, seeds in groups.items():
        yield group, list(seeds.values())


def _said_before(group: Group, compared: Container[Group]) -> bool:
    """Whether it is of models before a recovery, pruned as others were that had none: no other target."""
    tokens, axis, share, phase, method = group
    return tokens > 0 and phase == "before" and (0, axis, share, phase, method) in compared


def _target(group: Group, pairs_S2N: list[tuple[Array, Array]]) -> dict[str, Any]:
    tokens, axis, share, phase, method = group
    most, end = GOALS[phase]
    found = ratio(pairs_S2N)
    goal = f"at most {most}" + ("" if end == inf else f", interval below {end}")
    after = f"after recovery on {tokens:,} tokens" if phase == "after" else "before recovery"
    return {
        "name": f"{axis}, {share:.0%}: excess loss, {method} / Minitron, {after}",
        "goal": goal,
        "measured": _said(found, pairs_S2N),
        "value": found and found.value,
        "low": found and found.low,
        "high": found and found.high,
        "met": found is not None and found.value <= most and found.high < end,
    }


def _said(found: Interval | None, pairs_S2N: list[tuple[Array, Array]]) -> str:
    seeds, num_rows = len(pairs_S2N), len(pairs_S2N[0][0])
    n = f"n={seeds} seeds" if seeds > 1 else f"n={num_rows} rows, one seed"
    if found is None:
        return f"no ratio: a model lost nothing, {n}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], {n}"


def _over_rows(ours_N: Array, theirs_N: Array) -> Interval:
    chosen_DN = np.random.default_rng(0).integers(len(ours_N), size=(DRAWS, len(ours_N)))
    with np.errstate(divide="ignore"):
        drawn_D = ours_N[chosen_DN].mean(1) / theirs_N[chosen_DN].mean(1)
    low, high = np.quantile(drawn_D, (0.025, 0.975))
    return Interval(float(ours_N.mean() / theirs_N.mean()), float(low), float(high))
