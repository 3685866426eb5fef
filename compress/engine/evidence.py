"""What a measurement proves of a limit, and of many limits judged at once.

Figures are turned so that more is worse. An interval says how sure a figure is; from its end on a limit's side follows
how likely the figure is if the truth lies just past the limit (a one-sided p-value). Of one limit that asks whether the
whole 95 % interval lies inside. Of many, over all candidates and tasks, some would look kept by luck: Holm's procedure
asks more of each, so that the chance that any is called kept, or any lost, wrongly stays 2.5 % each (Schuirmann 1987;
Holm 1979).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, erfc, inf, sqrt
from typing import Literal

from compress.records import Measurement

ONE_SIDED = 0.025
"""How often any limit may be called kept wrongly; and as often lost."""

Finding = Literal["kept", "lost", "not enough items"]


@dataclass(frozen=True)
class Figure:
    """What a gate looks at, turned so that more is worse, with its 95 % interval; without bounds nothing is sure."""

    value: float
    low: float
    high: float
    n: int | None = None
    degrees: int | None = None
    """Of freedom, of a Student's interval; None for a normal one."""

    @classmethod
    def of(cls, measurement: Measurement, sign: int = 1) -> "Figure":
        """Return a measurement times `sign`. Bytes and counts are exact; others without an interval prove nothing."""
        is_exact = measurement.unit in EXACT
        bounds = [
            bound if bound is not None else measurement.value if is_exact else side * inf
            for bound, side in ((measurement.low, -1), (measurement.high, 1))
        ]
        low, high = sorted(sign * bound for bound in bounds)
        return cls(sign * measurement.value, low, high, measurement.n, measurement.degrees)

    def mapped(self, change: Callable[[float], float]) -> "Figure":
        """Return the figure on another scale, given by a function that rises."""
        return Figure(change(self.value), change(self.low), change(self.high), self.n, self.degrees)

    def minus(self, other: "Figure") -> "Figure":
        """Return the difference of two figures that are not paired; widths add in squares (MOVER, Zou 2008)."""
        below = ((self.value - self.low) ** 2 + (other.high - other.value) ** 2) ** 0.5
        above = ((self.high - self.value) ** 2 + (other.value - other.low) ** 2) ** 0.5
        value = self.value - other.value
        few = [each for each in (self.degrees, other.degrees) if each is not None]
        return Figure(value, value - below, value + above, self.n, min(few, default=None))


EXACT = ("bytes", "parameters")


@dataclass(frozen=True)
class Comparison:
    """A figure and the limit it must not pass, on the same scale."""

    figure: Figure
    limit: float

    @property
    def is_certain(self) -> bool:
        """Whether the figure is exact: nothing can look so by luck."""
        return self.figure.low == self.figure.high

    @property
    def can_prove(self) -> bool:
        """Whether there is an interval at all."""
        return self.figure.high < inf and self.figure.low > -inf

    def p_kept(self) -> float:
        """Return how likely so good a figure is where the truth is at the limit."""
        return _p(self.limit - self.figure.value, self.figure.high - self.figure.value, self.figure.degrees)

    def p_lost(self) -> float:
        """Return how likely so bad a figure is where the truth is at the limit."""
        return _p(self.figure.value - self.limit, self.figure.value - self.figure.low, self.figure.degrees)

    def enough_items(self, num_tests: int) -> int | None:
        """Return how many items would prove it is kept; None where none would.

        Widths shrink as one over the root of their number; `num_tests` limits that are judged at once ask for more.
        """
        figure, room = self.figure, self.limit - self.figure.value
        if room <= 0 or not figure.n or not self.can_prove:
            return None
        wider = _quantile(ONE_SIDED / num_tests, figure.degrees) / _quantile(ONE_SIDED, figure.degrees)
        return ceil(figure.n * (wider * (figure.high - figure.value) / room) ** 2)


def findings(tests: Sequence[Comparison]) -> tuple[list[Finding], int]:
    """Return what is proved of each limit, and how many were judged at once."""
    unsure = [place for place, test in enumerate(tests) if not test.is_certain and test.can_prove]
    kept = _holm({place: tests[place].p_kept() for place in unsure})
    lost = _holm({place: tests[place].p_lost() for place in unsure})
    for place, test in enumerate(tests):
        if test.is_certain:
            (kept if test.figure.value <= test.limit else lost).add(place)
    words: list[Finding] = [
        "kept" if place in kept else "lost" if place in lost else "not enough items"
        for place in range(len(tests))
    ]
    return words, max(1, len(unsure))


def _holm(p_values: dict[int, float]) -> set[int]:
    """Return what is significant, the most convincing first: each is asked as if the rest were still to be proved."""
    found: set[int] = set()
    for number, place in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[place] > ONE_SIDED / (len(p_values) - number):
            break
        found.add(place)
    return found


def _p(room: float, half_width: float, degrees: int | None) -> float:
    """Return the one-sided p-value of a distance, given the half-width of the 95 % interval on that side."""
    if half_width <= 0:
        return 0.0 if room >= 0 else 1.0
    if room == half_width:
        return ONE_SIDED  # the interval's own end: no rounding may put it on the other side
    return _beyond(room / half_width * _quantile(ONE_SIDED, degrees), degrees)


def _beyond(away: float, degrees: int | None) -> float:
    """Return the share of a normal, or Student's, distribution above a value."""
    if degrees is None:
        return erfc(away / sqrt(2)) / 2
    from scipy.stats import t

    return float(t.sf(away, degrees))


@lru_cache(maxsize=256)
def _quantile(share: float, degrees: int | None) -> float:
    from scipy.stats import norm, t

    return float(norm.isf(share) if degrees is None else t.isf(share, degrees))
