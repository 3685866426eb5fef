"""The geometry of the report's charts: where each mark, tick and label goes.

Deciding is here, drawing is in `charts.jinja`: every text passes through the template's escaping. Coordinates
are SVG user units with the origin at the top left.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from compress.records import Measurement, RunRecord, StepRecord
from compress.report import figures, units
from compress.report.labels import Label, Spot, along, place

LEFT, RIGHT, TOP, BOTTOM = 52, 456, 28, 268
"""The plotting area inside a picture 480 units wide and 320 high."""

MARGIN = 0.01
"""A close-up shows everything down to this share below the worst model one would take."""

FRAME = (LEFT, TOP, RIGHT, BOTTOM)

CLOSE_UP = 0.4
"""Below this share of the whole height, the models one would take are also drawn by themselves."""

Scale = Callable[[float], float]

T = TypeVar("T")


@dataclass(frozen=True)
class Tick:
    """A grid line and its text; `at` is a coordinate."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """One model in a scatter chart, with the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    title: str
    label: Label | None


@dataclass(frozen=True)
class Level:
    """A level line across the chart, with its name."""

    at: float
    label: Label


@dataclass(frozen=True)
class Scatter:
    """Quality against one cost."""

    title: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    links: tuple[tuple[float, float, float, float], ...]
    chance: Level | None


@dataclass(frozen=True)
class Cost:
    """What a scatter chart has on its horizontal axis."""

    title: str
    x_name: str
    unit: str
    of: Callable[[StepRecord], float | None]


@dataclass(frozen=True)
class _Model:
    """A model that can be drawn: both its cost and its quality are known."""

    step: StepRecord
    cost: float
    quality: Measurement

    @property
    def interval(self) -> tuple[float, float, float]:
        """The ends of the interval (the value where there is none) around the value."""
        low, value, high = self.quality.low, self.quality.value, self.quality.high
        return value if low is None else low, value, value if high is None else high


def costs(run: RunRecord) -> tuple[Cost, ...]:
    """Return the costs quality is drawn against: bytes, and time per token at the smallest profile."""
    size = Cost("Accuracy and size", "Size on disk", "bytes on disk", lambda step: float(step.disk_bytes))
    profile = next(iter(figures.profiles(run)), None)
    if profile is None:
        return (size,)

    def time(step: StepRecord) -> float | None:
        taken = figures.paired(run, step, figures.TIME_PER_TOKEN, profile)
        return taken.value if taken else None

    name = f"Time per output token ({figures.profile_name(profile)})"
    return size, Cost("Accuracy and speed", name, "ms", time)


def scatters(run: RunRecord, cost: Cost, best: StepRecord | None) -> list[Scatter]:
    """Return mean accuracy against a cost for every step both were measured of; none with fewer than two.

    A step that broke the model stretches the chart until what one would take lies in one heap; then a
    close-up of these comes first, and the chart of the whole way names the others.
    """
    models = _models(run, cost)
    if len(models) < 2:
        return []
    floor = min([m.quality.value for m in models if _is_final(run, m.step)], default=-math.inf)
    near = [m for m in models if m.quality.value >= floor - MARGIN]
    chance = figures.chance(run)
    whole = _draw(cost, cost.title, models, {m.step.name for m in models}, best, chance)
    if len(near) < 2 or _height(near, None) > CLOSE_UP * _height(models, chance):
        return [whole]
    names = {m.step.name for m in near}
    others = {m.step.name for m in models if m.step.name not in names or m.step.role == "original"}
    return [
        _draw(cost, f"{cost.title}, close up", near, names, best, None),
        _draw(cost, f"{cost.title}, the whole way", models, others, best, chance),
    ]


def _is_final(run: RunRecord, step: StepRecord) -> bool:
    return step.role != "student" or step in run.leaves


def _height(models: Sequence[_Model], chance: float | None) -> float:
    low, high = _reach(models, chance)
    return high - low


def _reach(models: Sequence[_Model], chance: float | None) -> tuple[float, float]:
    return y_range([v for model in models for v in model.interval] + ([] if chance is None else [chance]))


def _draw(
    cost: Cost,
    title: str,
    models: Sequence[_Model],
    named: Container[str],
    best: StepRecord | None,
    chance: float | None,
) -> Scatter:
    x_values, y_values = [model.cost for model in models], _reach(models, chance)
    to_x, to_y = logarithmic(x_values), linear(y_values, BOTTOM, TOP)
    spots = {model.step.name: (to_x(model.cost), to_y(model.quality.value)) for model in models}
    level = None if chance is None else _guessing(chance, models, spots, to_y)
    named_spots = {name: at for name, at in spots.items() if name in named}
    labels = place(named_spots, spots.values(), FRAME, [level.label] if level else [])
    return Scatter(
        title=title,
        x_name=cost.x_name,
        x_ticks=tuple(Tick(to_x(v), units.plain(units.quantity(v, cost.unit))) for v in _log_ticks(x_values)),
        y_ticks=tuple(Tick(to_y(v), units.plain(units.share(v))) for v in nice_ticks(y_values, 6)),
        marks=tuple(_mark(m, cost, spots[m.step.name], to_y, labels.get(m.step.name), best) for m in models),
        links=tuple(
            (*spots[model.step.parent], *spots[model.step.name])
            for model in models
            if model.step.role == "student" and model.step.parent in spots
        ),
        chance=level,
    )


def _guessing(chance: float, models: Sequence[_Model], spots: Mapping[str, Spot], to_y: Scale) -> Level:
    """Return the line of guessing; its name keeps away from marks, and from bars where they cross the line."""
    at = to_y(chance)
    crossing = [
        (spots[model.step.name][0], at)
        for model in models
        if model.interval[0] <= chance <= model.interval[2]
    ]
    return Level(at, along(at, f"guessing, {units.share(chance)}", [*spots.values(), *crossing], FRAME))


def kind_of(step: StepRecord, best: StepRecord | None) -> str:
    """Return how a model is drawn: ``original``, ``baseline``, ``best`` or ``student``."""
    return "best" if best is not None and step.name == best.name else step.role


def thinned(points: Sequence[T], most: int) -> list[T]:
    """Return at most so many points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def linear(values: tuple[float, float], start: float, stop: float) -> Scale:
    """Return the map that takes the range of values onto the stretch from `start` to `stop`."""
    low, high = values
    return lambda value: round(start + (value - low) / (high - low) * (stop - start), 1)


def logarithmic(values: Sequence[float]) -> Scale:
    """Return the map of positive values onto the width of the chart, equal ratios equally far apart."""
    low, high = math.log(min(values)), math.log(max(values))
    pad = max(0.08 * (high - low), 0.1)
    to_x = linear((low - pad, high + pad), LEFT, RIGHT)
    return lambda value: to_x(math.log(value))


def y_range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range of shares with air above and below the values."""
    pad = max(0.06 * (max(values) - min(values)), 0.005)
    return max(min(values) - pad, -pad), min(max(values) + pad, 1 + pad)


def nice_ticks(values: tuple[float, float], most: int) -> list[float]:
    """Return at most so many round values inside a range."""
    low, high = values
    step = nice_step(values, most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def nice_step(values: tuple[float, float], most: int) -> float:
    """Return the least of 1, 2 or 5 tens that a range holds at most so many of."""
    rough = (values[1] - values[0]) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Return 1-2-5 ticks; where the values lie so close that these are fewer than two, linear ones."""
    low, high = min(values) / 1.1, max(values) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= m * 10.0**power <= high]
    return ticks if len(ticks) >= 2 else [tick for tick in nice_ticks((low, high), 4) if tick > 0]


def _models(run: RunRecord, cost: Cost) -> list[_Model]:
    models = []
    for step in run.steps:
        quality, value = figures.accuracy(step), cost.of(step)
        if quality is None or value is None or value <= 0 or not math.isfinite(quality.value + value):
            continue
        models.append(_Model(step, value, quality))
    return models


def _mark(
    model: _Model, cost: Cost, at: Spot, to_y: Scale, label: Label | None, best: StepRecord | None
) -> Mark:
    low, value, high = model.interval
    width = units.interval(model.quality.low, model.quality.high, "share")
    accuracy = f"{units.share(value)} (95 %: {width})" if width else units.share(value)
    return Mark(
        x=at[0],
        y=at[1],
        low=to_y(low),
        high=to_y(high),
        kind=kind_of(model.step, best),
        title=f"{model.step.name}: {accuracy}, {units.quantity(model.cost, cost.unit)}",
        label=label,
    )
