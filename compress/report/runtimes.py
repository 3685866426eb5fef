"""What a runtime brings, told apart from what compressing brings: the original is measured in it too."""

from collections.abc import Iterator

from compress.records import RunRecord, StepRecord
from compress.report import figures, speed, units
from compress.report.finding import Finding


def gains(run: RunRecord, step: StepRecord, rival: StepRecord) -> str:
    """Return ``1.6× smaller than the original at 4 bits in ONNX Runtime and as fast``."""
    times = figures.times_smaller_than(rival, step)
    size = units.compared(times, "smaller", "larger", "the same size") if times else "of unknown size"
    joined = "as" if size == "the same size" else "than"
    faster = speed.claim_to_rival(run, step)
    return f"{size} {joined} {rival_in_words(run, rival)}" + (f" and {faster}" if faster else "")


def rival_in_words(run: RunRecord, rival: StepRecord) -> str:
    """Return ``the original at 4 bits in ONNX Runtime``; the runtime is named where it is not the original's."""
    bits = _bits(run, rival)
    name = figures.runtime(rival) if figures.is_elsewhere(run, rival) else None
    return "the original" + (f" at {bits} bits" if bits else "") + (f" in {name}" if name else "")


def findings(run: RunRecord, best: StepRecord) -> Iterator[Finding]:
    """Yield how the best student stands to the original as it is, and how much of that any file of its kind brings."""
    rival, name = figures.rival_in_runtime(run, best), figures.runtime(best) or "its own runtime"
    smaller, faster = figures.times_smaller(run, best), speed.claim(run, best)
    if rival is not None and smaller:
        whole = [units.compared(smaller, "smaller", "larger", "the same size"), *([faster] if faster else [])]
        brought = " and ".join(_brought(run, rival))
        text = f"Beside the original as it is, {best.name} is {' and '.join(whole)}"
        yield Finding(
            "plain", f"{text}, of which {rival_in_words(run, rival)} brings {brought} without compressing."
        )
    elif figures.is_elsewhere(run, best) and faster:
        text = f"In {name} {best.name} is {faster} beside the original, which was not measured there"
        yield Finding("warn", f"{text}: how much of it the runtime brings cannot be told.")


def _brought(run: RunRecord, rival: StepRecord) -> Iterator[str]:
    """What the file and the runtime bring the original itself."""
    smaller = figures.times_smaller(run, rival)
    if smaller:
        yield units.compared(smaller, "smaller", "larger", "the same size")
    if figures.times_faster(run, rival) is not None:
        yield speed.claim(run, rival) or "a speed that cannot be told from the original's"


def _bits(run: RunRecord, rival: StepRecord) -> int | None:
    """Return how many bits its weights have: by its own step's settings, or those of the steps before it."""
    before = figures.parent(run, rival)
    known = [rival.settings, *(child.settings for child in rival.children)]
    known += [before.settings] if before else []
    found = (each["bits"] for each in known if isinstance(each.get("bits"), int))
    return next(found, None)
