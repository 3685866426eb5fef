"""The handful of numbers under the headline: what a buyer asks first, each beside the original."""

from collections.abc import Iterator

from compress.records import RunRecord, StepRecord
from compress.report import figures, speed, units
from compress.report.cells import MISSING, Cell, Text, change_text, figure, measured, spread

OUTPUT_PRICE = "usd_per_million_output_tokens"


def key_figures(run: RunRecord, best: StepRecord) -> Iterator[tuple[str, Cell]]:
    """Yield the name and the figure of quality, size, speed, price and parameters."""
    yield "Mean accuracy", _accuracy(best)
    smaller = figures.times_smaller(run, best)
    rival = figures.rival_in_runtime(run, best)
    notes = _times(smaller, "smaller", "larger")
    if rival and (times := figures.times_smaller_than(rival, best)):
        notes.append(_than(rival, times, "smaller than", "larger than", "as large as"))
    yield "Size on disk", figure(best.disk_bytes, units.file_size, *notes)
    yield from _speed(run, best)
    reference, parameters = figures.original(run), best.realized.num_parameters
    fewer = reference.realized.num_parameters / parameters if reference and parameters else None
    yield "Parameters", figure(parameters, units.count, *_times(fewer, "fewer", "more"))


def _accuracy(best: StepRecord) -> Cell:
    quality, change = figures.accuracy(best), figures.accuracy_change(best)
    if quality is None:
        return MISSING
    notes = []
    if change is not None:
        notes.append(Text(change_text(change).text, (change.value,)))
        notes += [Text(f"95 %: {note.text}", note.values) for note in spread(change, "points")]
    return figure(quality.value, units.share, *notes)


def _speed(run: RunRecord, best: StepRecord) -> Iterator[tuple[str, Cell]]:
    for profile in figures.profiles(run)[:1]:
        time = figures.paired(run, best, figures.TIME_PER_TOKEN, profile)
        notes = [*_times(figures.times_faster(run, best), "faster", "slower"), *_certainty(run, best)]
        notes += _in_runtime(run, best)
        yield "Time per output token", measured(time, *notes, Text(figures.profile_name(profile)))
        price = figures.paired(run, best, OUTPUT_PRICE, profile)
        relative = figures.to_original(run, best, OUTPUT_PRICE, profile)
        if price is not None:
            notes = _times(1 / relative if relative else None, "cheaper", "dearer")
            yield "Price of 1 M output tokens", measured(price, *notes)


def _than(rival: StepRecord, times: float, more: str, less: str, same: str) -> Text:
    return Text(f"{units.compared(times, more, less, same)} {rival.name}", (times,))


def _in_runtime(run: RunRecord, best: StepRecord) -> Iterator[Text]:
    """How fast it is beside the original in the same runtime, and which that is."""
    found, rival = figures.times_faster_than_rival(run, best), figures.rival_in_runtime(run, best)
    if found and rival:
        times, ends = found
        yield _than(rival, times, "faster than", "slower than", "as fast as")
        if ends:
            yield Text(f"95 %: {speed.interval_words(ends)} as fast", ends)
    if name := figures.runtime(best):
        yield Text(f"in {name}")


def _certainty(run: RunRecord, best: StepRecord) -> Iterator[Text]:
    ends = figures.times_faster_interval(run, best)
    if ends:
        yield Text(f"95 %: {speed.interval_words(ends)} as fast", ends)
    elif figures.times_faster(run, best) is not None:
        yield Text(f"{speed.num_rounds(run, best)}, no interval: may be noise")


def _times(times: float | None, more: str, less: str) -> list[Text]:
    if not times:
        return []
    words = f"{units.ratio(times)} {more}" if times >= 1 else f"{units.ratio(1 / times)} {less}"
    return [Text(words, (times,))]
