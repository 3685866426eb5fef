"""Means over tokens with intervals over sequences: tokens of one sequence are not independent.

An interval stays where its figure can be. Of shares and of positive figures it is Student's on a scale without ends,
log-odds and logarithm, and carried back: beside an end the plain one reaches beyond it on one side and is too short on
the other. `tests/meters/test_clusters.py` counts how often each holds the truth.

Shapes: N tokens, S sequences.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import torch
from scipy.stats import t as student_t
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its 95 % interval over sequences; without one where a sequence stands alone."""

    mean: float
    low: float | None
    high: float | None
    n: int
    degrees: int | None = None
    """Degrees of freedom of the interval: sequences less one."""


def clustered_mean(values_N: Tensor, sequence_N: Tensor) -> Estimate:
    """Return the mean with the 95 % interval of a ratio estimator whose sampling units are sequences.

    For sequences of equal length this is the t interval of their means (Cochran 1977, section 6.3).
    """
    mean, margin, num = _mean_and_margin(values_N, sequence_N)
    if margin is None:
        return Estimate(mean, None, None, len(values_N))
    return Estimate(mean, mean - margin, mean + margin, len(values_N), num - 1)


def clustered_positive(values_N: Tensor, sequence_N: Tensor) -> Estimate:
    """Return the mean of figures that are never negative, its interval that of the mean's logarithm."""
    mean, margin, num = _mean_and_margin(values_N, sequence_N)
    if margin is None:
        return Estimate(mean, None, None, len(values_N))
    factor = exp(margin / mean) if mean > 0 else 1.0
    return Estimate(mean, mean / factor, mean * factor, len(values_N), num - 1)


def clustered_share(values_N: Tensor, sequence_N: Tensor) -> Estimate:
    """Return a share with the interval of its log-odds.

    Where it is 0 or 1 no scatter is seen: then Wilson's interval (1927) of as many items as there are sequences.
    """
    share, margin, num_sequences = _mean_and_margin(values_N, sequence_N)
    if margin is None:
        return Estimate(share, None, None, len(values_N))
    if share in (0.0, 1.0):
        quantile = _quantile(num_sequences)
        width = quantile**2 / (num_sequences + quantile**2)
        return Estimate(
            share, share * (1 - width), share + (1 - share) * width, len(values_N), num_sequences - 1
        )
    odds, step = log(share / (1 - share)), margin / (share * (1 - share))
    return Estimate(share, _share(odds - step), _share(odds + step), len(values_N), num_sequences - 1)


def _share(log_odds: float) -> float:
    return 1 / (1 + exp(-log_odds)) if log_odds > 0 else exp(log_odds) / (1 + exp(log_odds))


def _mean_and_margin(values_N: Tensor, sequence_N: Tensor) -> tuple[float, float | None, int]:
    """Return the mean, half the width of its interval (`None` of one sequence alone), and the number of sequences."""
    values_N = values_N.double()
    counts_S = torch.bincount(sequence_N).double()
    counts_S, sums_S = counts_S[counts_S > 0], torch.bincount(sequence_N, weights=values_N)[counts_S > 0]
    mean, num = float(values_N.mean()), len(counts_S)
    if num < 2:
        return mean, None, num
    residual = float((sums_S - mean * counts_S).square().sum())
    error = sqrt(residual * num / (num - 1)) / len(values_N)
    return mean, _quantile(num) * error, num


def _quantile(num_sequences: int) -> float:
    """Return Student's two-sided 95 % quantile."""
    return float(student_t.ppf(0.975, num_sequences - 1))
