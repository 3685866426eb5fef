"""What may be said of a model's speed: nothing that its interval does not bear out.

Machines have neighbours and clocks that drift; of a few short rounds, two models of one shape have come out five
times apart. A claim needs an interval that leaves 1 out.
"""

from collections.abc import Iterator

from compress.records import RunRecord, StepRecord
from compress.report import figures, units
from compress.report.finding import Finding

SAME = 1.1
"""An interval within this factor of 1 is called the same speed."""


def claim(run: RunRecord, step: StepRecord) -> str | None:
    """Return ``5.2× faster``, ``1.25× slower`` or ``as fast``; ``None`` where none of these can be told."""
    return claimed(figures.times_faster(run, step), figures.times_faster_interval(run, step))


def claim_to_rival(run: RunRecord, step: StepRecord) -> str | None:
    """Return the same against the original in the step's own runtime, timed in turns with it."""
    found = figures.times_faster_than_rival(run, step)
    return claimed(*found) if found else None


def claimed(times: float | None, ends: tuple[float, float] | None) -> str | None:
    """Return what a factor and its interval bear out."""
    if times is None or ends is None:
        return None
    low, high = ends
    if low > 1 / SAME and high < SAME:
        return "as fast"
    return in_words(times) if low > 1 or high < 1 else None


def doubt(run: RunRecord, step: StepRecord) -> Iterator[Finding]:
    """Yield why nothing is claimed of a speed that was measured."""
    to_rival, rival = figures.times_faster_than_rival(run, step), figures.rival_in_runtime(run, step)
    if to_rival and rival:
        (times, ends), other = to_rival, rival.name
    elif figures.is_elsewhere(run, step):
        return  # what can be said is in what runtimes bring
    else:
        known, ends, other = (
            figures.times_faster(run, step),
            figures.times_faster_interval(run, step),
            "the original",
        )
        if known is None:
            return
        times = known
    if claimed(times, ends):
        return
    rounds = f"it was {in_words(times)} than {other} in the median of {num_rounds(run, step)}"
    if ends is None:
        text = f"Nothing is claimed of the speed of {step.name}: {rounds}"
        yield Finding("plain", f"{text}, without an interval that would tell this from noise.")
    else:
        text = f"The speed of {step.name} cannot be told from {'the original' if other == 'the original' else other}'s"
        yield Finding("plain", f"{text}: {rounds} (95 %: {interval_words(ends)} as fast).")


def in_words(times: float) -> str:
    """Return a factor in words: ``5.2× faster``, ``1.25× slower``."""
    return f"{units.ratio(times)} faster" if times >= 1 else f"{units.ratio(1 / times)} slower"


def interval_words(ends: tuple[float, float]) -> str:
    """Return an interval of factors: ``4.9× to 5.5×``."""
    return f"{units.ratio(ends[0])} to {units.ratio(ends[1])}"


def num_rounds(run: RunRecord, step: StepRecord) -> str:
    """Return how often it was timed: ``5 rounds``."""
    taken = next((figures.within(step, figures.TIME_PER_TOKEN, p) for p in figures.profiles(run)[:1]), None)
    n = taken.n if taken else None
    return "unknown rounds" if n is None else "one round" if n == 1 else f"{n} rounds"
