"""Intervals and tests for answers to the same questions.

Two models answer the same items, so everything about their difference is paired: it rests on the items on
which they disagree, and needs far fewer of them than comparing two separate accuracies would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, exp, inf, log, sqrt
from statistics import fmean, median, stdev

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal."""


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(num_correct: int, n: int) -> Interval:
    """Return a proportion with Wilson's score interval (1927): sensible at 0, at n, and for small n."""
    p = num_correct / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    margin = Z95 / (1 + Z95**2 / n) * sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    # At 0 and n the bound is the point itself; rounding may put it a hair inside.
    return Interval(p, min(p, max(0.0, centre - margin)), max(p, min(1.0, centre + margin)))


def paired_difference_interval(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """Return accuracy(after) − accuracy(before) over the same items with its paired interval.

    Bonett and Price (2012), adjusted Wald: one answer is added to each kind of disagreement, so that no
    disagreement at all still leaves an honest width.
    """
    gained, lost = disagreements(before, after)
    n = len(before)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    margin = Z95 * sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Interval((gained - lost) / n, max(-1.0, up - down - margin), min(1.0, up - down + margin))


def mean_interval(parts: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates; widths add in squares, each side apart (MOVER, Zou 2008)."""
    k = len(parts)
    value = sum(part.value for part in parts) / k
    below = sqrt(sum((part.value - part.low) ** 2 for part in parts)) / k
    above = sqrt(sum((part.high - part.value) ** 2 for part in parts)) / k
    return Interval(value, value - below, value + above)


def normal_interval(values: Sequence[float]) -> Interval:
    """Return a mean with its normal interval."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / max(1, n - 1)
    margin = Z95 * sqrt(variance / n)
    return Interval(mean, mean - margin, mean + margin)


def graded_interval(values: Sequence[float]) -> Interval:
    """Return the mean of scores between 0 and 1 with Student's interval, kept inside 0 to 1.

    Scores that are all alike leave no width to judge by: then, as for a share, the rule of three bounds what was not
    seen (Hanley & Lippman-Hand 1983).
    """
    n = len(values)
    mean, margin = fmean(values), _student_margin(values) + (3 / n if _alike(values) else 0.0)
    return Interval(mean, max(0.0, mean - margin), min(1.0, mean + margin))


def paired_graded_interval(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Return the mean of after − before over the same items, scored 0 to 1, with Student's interval of the pairs."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    mean, margin = fmean(changes), _student_margin(changes) + (3 / len(changes) if _alike(changes) else 0.0)
    return Interval(mean, max(-1.0, mean - margin), min(1.0, mean + margin))


def paired_t(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired test that the means are the same; 1 for equal scores."""
    from scipy.stats import t

    changes = [b - a for a, b in zip(before, after, strict=True)]
    if len(changes) < 2 or _alike(changes):
        return 1.0 if not any(changes) else 0.0 if len(changes) > 1 else 1.0
    statistic = fmean(changes) / (stdev(changes) / sqrt(len(changes)))
    return float(2 * t.sf(abs(statistic), len(changes) - 1))


def _student_margin(values: Sequence[float]) -> float:
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * stdev(values) / sqrt(n) if n > 1 else 1.0


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) < 1e-12


def ratio_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Return median(values) / median(others) of positive figures taken in turns, with the interval of their ratio.

    Each is compared with the one taken beside it: Student's interval of the mean logarithm of these n ratios. One
    pair alone says nothing of how they scatter: its interval is without end. Where the ratio of the medians lies
    outside, the interval is widened to hold it.
    """
    from scipy.stats import t

    logs = [log(value / other) for value, other in zip(values, others, strict=True)]
    ratio, mean = median(values) / median(others), fmean(logs)
    if len(logs) < 2:
        return Interval(ratio, 0.0, inf)
    margin = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / sqrt(len(logs))
    return Interval(ratio, min(ratio, exp(mean - margin)), max(ratio, exp(mean + margin)))


def mcnemar_exact(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the two-sided exact p-value that gains and losses are equally likely (McNemar 1947)."""
    gained, lost = disagreements(before, after)
    tail = sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << (gained + lost)))


def disagreements(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Return on how many items the second model is right where the first is wrong, and the reverse."""
    pairs = list(zip(before, after, strict=True))
    return sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
