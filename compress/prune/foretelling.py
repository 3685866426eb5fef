"""What a shape will lose, foretold from what was measured along each axis by itself.

The divergence of a shape is close to the sum of what its axes cost alone: over 33 random shapes at 75, 50 and 35 % of
a small Llama the sum was 7 % off on average, and ranked them with a correlation of 0.98; powers other than the first,
which would let losses strengthen or weaken one another, did worse (0.7: 0.93, 1.3: 0.95). What is left of
interaction is corrected axis by axis from the shapes that are measured as a whole.

Shapes: A axes, N shapes, M shapes that were measured.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.prune.shapes import Numbers

LEAST = 1e-9
"""Divergences are floored here: removing dead units costs nothing, of which there is no logarithm."""

STEEPNESS = 1.5
"""How fast the loss falls with the removed share where only one size was tried; between 1 and 3 it is measured."""

CAUTION = 0.3
"""How strongly corrections hold on to 1: one measured shape moves them by about half of what it asks for."""


def loss_along(removed: Sequence[float], divergences: Sequence[float], wanted_N: "Numbers") -> "Numbers":
    """Return the divergence at removed shares ``[N]`` of one axis, from those that were measured.

    Interpolated between the logarithms of both, and made to rise: more removed never counts as less lost. Before the
    first and behind the last the curve goes on as steep as it was.
    """
    import numpy as np

    order = np.argsort(removed)
    x = np.log(np.asarray(removed, dtype=np.float64)[order])
    y = np.log(np.maximum.accumulate(np.maximum(np.asarray(divergences, dtype=np.float64)[order], LEAST)))
    first, last = (_steepness(x, y, at) for at in (0, -2))
    at = np.log(np.maximum(wanted_N, LEAST))
    inside = np.interp(at, x, y)
    below, above = y[0] + first * (at - x[0]), y[-1] + last * (at - x[-1])
    values = np.where(at < x[0], below, np.where(at > x[-1], above, inside))
    losses: Numbers = np.where(wanted_N > 0, np.exp(values), 0.0)
    return losses


def corrections(losses_MA: "Numbers", measured_M: "Numbers") -> "Numbers":
    """Return a factor for each axis ``[A]`` with which the sums come closest to what was measured.

    Least squares of the relative errors, the factors held near 1 (ridge) and at least a quarter.
    """
    import numpy as np

    rows_MA = losses_MA / np.maximum(measured_M, LEAST)[:, None]
    num_axes = losses_MA.shape[1]
    gram = rows_MA.T @ rows_MA + CAUTION * np.eye(num_axes)
    missing = rows_MA.T @ (1 - rows_MA.sum(1))
    factors: Numbers = np.maximum(1 + np.linalg.solve(gram, missing), 0.25)
    return factors


def _steepness(x: "Numbers", y: "Numbers", at: int) -> float:
    if len(x) == 1:
        return STEEPNESS
    after = at + 1
    return float(min(3.0, max(1.0, (y[after] - y[at]) / (x[after] - x[at]))))
