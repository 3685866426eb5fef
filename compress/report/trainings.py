"""A training drawn: its loss, that of text it does not learn from, and the tasks that were watched.

Every panel has the same tokens to the right. What was seen before the first step stands at zero: without it
nobody could see whether training helped. Lines differ by their dashes too, for paper and for eyes without colour.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.records import StepRecord
from compress.report import units
from compress.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    Tick,
    linear,
    nice_step,
    nice_ticks,
    thinned,
)
from compress.report.labels import Label
from compress.report.looks import Look, comments, finite, looks

MAX_POINTS = 400

START = 8
"""How far from the axis zero tokens lie, so that the mark there covers no number."""

ABOVE = 16
"""The base line of the words above the frame: higher than a mark at its upper edge."""

FAR = 30
"""A loss whose highest value is so many times its lowest is drawn on a logarithmic axis: a linear one would
show the first steps and a line along the bottom."""

ALIKE = 0.05
"""KL that is nowhere further from the held-out loss than this share of its highest value is that loss."""

Values = Sequence[tuple[int, float]]
Write = Callable[[float], str]


@dataclass(frozen=True)
class Dot:
    """One look; `kind` is ``original`` before training, ``best`` at what was kept, else ``look``."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Line:
    """One figure over the tokens; `style` names its dashes and colour."""

    name: str
    style: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Panel:
    """One chart of a training."""

    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    events: tuple[Label, ...]
    """Where the weights that were kept come from, and where it stopped early: an upright line under a word."""


@dataclass(frozen=True)
class Training:
    """All panels of one training, and what to know beside them."""

    step: str
    last: str
    panels: tuple[Panel, ...]
    comments: tuple[tuple[str, str], ...]
    """Tone and text."""

    @property
    def kinds(self) -> set[str]:
        """Which dots need a legend."""
        return {dot.kind for panel in self.panels for line in panel.lines for dot in line.dots}


@dataclass(frozen=True)
class _Series:
    """A figure to draw; `has_dots` where it was seen at looks rather than at every step."""

    name: str
    style: str
    values: Values
    has_dots: bool = True


def training(step: StepRecord) -> Training | None:
    """Return a training's charts; None with fewer than two finite points."""
    learned = [(point.tokens, point.loss) for point in step.curve if math.isfinite(point.loss)]
    if len(learned) < 2 or learned[-1][0] <= learned[0][0]:
        return None
    seen = looks(step)
    drawn = [
        _panel(step, "Loss, nats per token", _losses(learned, seen), units.significant),
        _panel(step, "KL to the teacher on held-out text, nats per token", _kl(seen), units.significant),
        _panel(step, "Accuracy on watched tasks", _tasks(seen), units.share, most=1.0),
    ]
    return Training(
        step.name,
        units.significant(learned[-1][1]),
        tuple(panel for panel in drawn if panel),
        tuple((comment.tone, comment.text) for comment in comments(step)),
    )


def _losses(learned: Values, seen: Sequence[Look]) -> list[_Series]:
    held_out = _figure(seen, "loss")
    found = [_Series("text it learns from", "learned", thinned(learned, MAX_POINTS), has_dots=False)]
    if held_out:
        same = " (all of it KL to the teacher)" if _figure(seen, "kl") and _is_kl(seen) else ""
        found.append(_Series(f"held-out text{same}", "held-out", held_out))
    return found


def _kl(seen: Sequence[Look]) -> list[_Series]:
    values = _figure(seen, "kl")
    return [_Series("held-out text", "held-out", values)] if values and not _is_kl(seen) else []


def _is_kl(seen: Sequence[Look]) -> bool:
    losses, divergences = dict(_figure(seen, "loss")), dict(_figure(seen, "kl"))
    limit = ALIKE * max(losses.values(), default=0.0)
    return losses.keys() == divergences.keys() and all(
        abs(losses[tokens] - kl) <= limit for tokens, kl in divergences.items()
    )


def _tasks(seen: Sequence[Look]) -> list[_Series]:
    names = dict.fromkeys(name for look in seen for name in look.tasks)
    return [
        _Series(
            name,
            f"axis-{number % 7}",
            [(look.tokens, look.tasks[name]) for look in seen if name in look.tasks],
        )
        for number, name in enumerate(names)
    ]


def _figure(seen: Sequence[Look], name: str) -> Values:
    return [(look.tokens, value) for look in seen if (value := finite(look.held_out.get(name))) is not None]


def _panel(
    step: StepRecord, y_name: str, series: Sequence[_Series], write: Write, most: float = math.inf
) -> Panel | None:
    if not series:
        return None
    x_values = (0.0, float(_end(step)))
    to_x = linear(x_values, LEFT + START, RIGHT)
    ticks, to_y, is_logarithmic = _axis([value for one in series for _, value in one.values], most)
    return Panel(
        y_name=y_name + (" (logarithmic)" if is_logarithmic else ""),
        x_ticks=tuple(Tick(to_x(v), units.plain(units.count(v))) for v in nice_ticks(x_values, 5)),
        y_ticks=tuple(Tick(to_y(v), units.axis(v, write)) for v in ticks),
        lines=tuple(_line(one, step, to_x, to_y, write) for one in series),
        events=tuple(_events(step, to_x)),
    )


def _end(step: StepRecord) -> int:
    """Return where the axis ends: at what was asked for where training stopped before."""
    asked, seen = step.settings.get("tokens"), step.curve[-1].tokens
    return max(asked, seen) if step.facts.get("stopped_early") and isinstance(asked, int) else seen


def _line(one: _Series, step: StepRecord, to_x: Scale, to_y: Scale, write: Write) -> Line:
    spots = [(to_x(tokens), to_y(value)) for tokens, value in one.values]
    kept = step.facts.get("kept_tokens")
    dots = [
        Dot(
            x,
            y,
            "best" if tokens == kept else "look" if tokens else "original",
            f"{one.name}, {f'after {units.count(tokens)} tokens' if tokens else 'before training'}: {write(value)}",
        )
        for (x, y), (tokens, value) in zip(spots, one.values, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return Line(one.name, one.style, path, tuple(dots) if one.has_dots else ())


def _events(step: StepRecord, to_x: Scale) -> list[Label]:
    """Return the kept point and the early stop, their words above the frame and away from each other."""
    kept, found = step.facts.get("kept_tokens"), []
    if kept == 0:
        found.append(Label(to_x(0), ABOVE, "start", "kept: before"))
    elif kept is not None:
        found.append(Label(to_x(kept), ABOVE, "end", "kept"))
    if step.facts.get("stopped_early"):
        x = to_x(step.curve[-1].tokens)
        found.append(Label(x, ABOVE, "start" if x < RIGHT - 70 else "end", "stopped early"))
    return found


def _axis(values: Sequence[float], most: float) -> tuple[list[float], Scale, bool]:
    """Return ticks, the first below all values and the last above them, the scale, and if it is logarithmic."""
    low, high = min(values), max(values)
    if low > 0 and high >= FAR * low and most == math.inf:
        ticks = log_ticks(low, high)
        to_log = linear((math.log10(ticks[0]), math.log10(ticks[-1])), BOTTOM, TOP)
        return ticks, lambda value: to_log(math.log10(value)), True
    pad = 0.0 if high > low else 0.1 * abs(low) or 0.1
    ticks = outer_ticks(low - pad if low else low, min(high + pad, most), 5)
    return ticks, linear((ticks[0], ticks[-1]), BOTTOM, TOP), False


def outer_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values in even steps, from at or below `low` to at or above `high`."""
    step = nice_step((low, high), most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1-2-5 values (powers of ten where there are many) from at or below `low` to at or above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in steps]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in ticks if tick >= high)
    return [tick for tick in ticks if first <= tick <= last]
