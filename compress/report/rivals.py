"""How the baselines stand to the best student: what a user could have instead of it.

A student is called unbeaten only where no baseline is as accurate. One that is, but larger and slower, is a choice a
reader has; one whose speed cannot be told from the student's is said to be just that.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from compress.records import RunRecord, StepRecord
from compress.report import figures, units
from compress.report.finding import Finding

Ends = tuple[float, float]


def findings(run: RunRecord, best: StepRecord) -> Iterator[Finding]:
    """Yield what is to be said of every baseline, or that none is as accurate."""
    baselines = figures.baselines(run)
    comparable = [rival for rival in baselines if figures.accuracy(rival) and figures.accuracy(best)]
    if not baselines:
        text = "No baseline was measured, so nothing here shows whether a simpler way does as well."
        yield Finding("plain", text)
    elif not comparable:
        yield Finding("plain", "Student and baselines cannot be compared: their quality was not measured.")
    as_accurate = [rival for rival in comparable if is_as_accurate(rival, best)]
    yield from (_finding(run, rival, best) for rival in as_accurate)
    if comparable and not as_accurate:
        yield _none_as_accurate(comparable, best)


def _none_as_accurate(rivals: Sequence[StepRecord], best: StepRecord) -> Finding:
    """What to say where no baseline measured as accurate: good news only if no interval reaches the student's."""
    undecided = [rival.name for rival in rivals if _end(rival, "high") >= _end(best, "low")]
    if not undecided:
        return Finding(
            "good", f"No baseline ({' or '.join(r.name for r in rivals)}) is as accurate as {best.name}."
        )
    text = f"No baseline measured as accurate as {best.name}, but by their 95 % intervals {' and '.join(undecided)}"
    return Finding("plain", f"{text} may be.")


def _end(step: StepRecord, which: Literal["low", "high"]) -> float:
    """Return an end of the interval of a step's accuracy, or the value where it has none."""
    found = figures.accuracy(step)
    assert found is not None
    end = found.low if which == "low" else found.high
    return found.value if end is None else end


def is_as_accurate(rival: StepRecord, student: StepRecord) -> bool:
    """Return whether a rival's accuracy is at least a student's."""
    theirs, ours = figures.accuracy(rival), figures.accuracy(student)
    return theirs is not None and ours is not None and theirs.value >= ours.value


def beats_on_size(rival: StepRecord, student: StepRecord) -> bool:
    """Return whether a rival is at least as accurate as a student and takes no more bytes on disk."""
    return is_as_accurate(rival, student) and rival.disk_bytes <= student.disk_bytes


def relative_speed(
    run: RunRecord, rival: StepRecord, student: StepRecord
) -> tuple[float, Ends | None] | None:
    """Return how many times sooner than a student a rival writes a token, and the 95 % interval where there is one.

    Timed in turns where the rival is the original in the student's runtime; of others through both ratios to the
    original, whose intervals then both count in full.
    """
    direct = figures.times_faster_than_rival(run, student)
    if direct and student.name in rival.rival_of:
        times, ends = direct
        return 1 / times, (1 / ends[1], 1 / ends[0]) if ends else None
    theirs, ours = figures.times_faster(run, rival), figures.times_faster(run, student)
    if not theirs or not ours:
        return None
    their_ends, our_ends = (figures.times_faster_interval(run, each) for each in (rival, student))
    ends = (their_ends[0] / our_ends[1], their_ends[1] / our_ends[0]) if their_ends and our_ends else None
    return theirs / ours, ends


def _finding(run: RunRecord, rival: StepRecord, best: StepRecord) -> Finding:
    """What is to be said of a baseline that is at least as accurate as the best student."""
    found = relative_speed(run, rival, best)
    pair = f"({_pair(rival)} against {_pair(best)})"
    if beats_on_size(rival, best):
        also = " and no slower" if found and found[0] >= 1 else ""
        text = f"The baseline {rival.name} beats {best.name}: at least as accurate{also}, and no larger"
        return Finding("bad", f"{text} {pair}.")
    accurate = f"The baseline {rival.name} is at least as accurate as {best.name}"
    if found is None:
        return Finding("plain", f"{accurate}, but larger; which is faster was not measured {pair}.")
    times, ends = found
    if ends is None or ends[0] <= 1 <= ends[1]:
        width = f" (95 %: {units.ratio(ends[0])} to {units.ratio(ends[1])} as fast)" if ends else ""
        return Finding(
            "warn", f"{accurate}, and its speed cannot be told from {best.name}'s{width}, but larger {pair}."
        )
    if times >= 1:
        return Finding("warn", f"{accurate} and {units.ratio(times)} faster, but larger {pair}.")
    return Finding("plain", f"{accurate}, but larger and {units.ratio(1 / times)} slower {pair}.")


def _pair(step: StepRecord) -> str:
    quality = figures.accuracy(step)
    accuracy = units.share(quality.value) if quality else units.NOT_MEASURED
    return f"{units.file_size(step.disk_bytes)}, {accuracy}"
