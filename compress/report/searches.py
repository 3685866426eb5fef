"""What a search tried, drawn: every candidate by cost and divergence, and what each axis costs by itself.

The geometry is that of `charts`; drawing is in ``parts.jinja``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.records import StepRecord
from compress.report import units
from compress.report.cells import Cell, Row, Table, Text, figure, words
from compress.report.charts import BOTTOM, FRAME, LEFT, RIGHT, TOP, Scale, Tick, linear, nice_ticks
from compress.report.labels import Label, place

COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "params": ("Parameters", units.count),
    "memory": ("Memory of weights and cache", units.file_size),
    "flops": ("Operations a token", lambda value: f"{units.count(value)}{units.SPACE}FLOPs"),
    "latency": ("Time a token", lambda value: units.quantity(value, "ms")),
}
"""What a budget is called and how it is written."""

AXES = {
    "layers": "layers",
    "ffn": "FFN neurons",
    "kv_groups": "KV groups",
    "hidden": "hidden size",
    "heads": "heads in a group",
    "experts": "experts",
    "expert_ffn": "expert neurons",
}
SIZES = {
    "layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "FFN",
    "num_key_value_heads": "KV heads",
    "num_attention_heads": "heads",
    "num_experts": "experts",
    "moe_intermediate_size": "expert FFN",
}

NATS = "nats/token"

Search = Mapping[str, Any]
"""The fact ``search`` of a step of `prune.search`."""


@dataclass(frozen=True)
class Point:
    """A candidate; `low` and `high` are the ends of its standard error."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    title: str
    label: Label | None


@dataclass(frozen=True)
class Candidates:
    """Divergence against cost: lower is better, further left is cheaper."""

    step: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    budget: float


@dataclass(frozen=True)
class Line:
    """One axis: its measured sizes joined."""

    number: int
    path: str
    dots: tuple[tuple[float, float, str], ...]
    label: Label


@dataclass(frozen=True)
class Probes:
    """What every axis costs by itself: divergence, logarithmic, against the share removed."""

    step: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def search_of(step: StepRecord) -> Search | None:
    """Return what a step's search found, where it was one."""
    found = step.facts.get("search")
    return found if isinstance(found, dict) and found.get("candidates") else None


def judged(candidate: Mapping[str, Any]) -> tuple[float, float]:
    """Return the divergence a candidate is chosen by, and its standard error."""
    if candidate["recovered"] is not None:
        return candidate["recovered"], candidate["recovered_error"]
    return candidate["divergence"], candidate["error"]


def candidates(step: StepRecord, search: Search) -> Candidates:
    """Return the chart of all that was measured as a whole."""
    name, write = COSTS[search["cost"]]
    costs = [each["cost"] for each in search["candidates"]]
    to_x = _padded([*costs, search["budget"]])
    highest = max(sum(judged(each)) for each in search["candidates"])
    y_values = (0.0, 1.08 * highest or 1.0)
    to_y = linear(y_values, BOTTOM, TOP)
    spots = {
        _mark_name(n, each): (to_x(each["cost"]), to_y(judged(each)[0])) for n, each in _numbered(search)
    }
    labels = place({name: at for name, at in spots.items() if not name.isdigit()}, spots.values(), FRAME)
    x_values = (min(*costs, search["budget"]), max(*costs, search["budget"]))
    return Candidates(
        step=step.name,
        x_name=name,
        y_name=f"Divergence from the {search['compared_with']}, nats a token",
        x_ticks=tuple(Tick(to_x(v), units.plain(write(v))) for v in _ticks(x_values, 4)),
        y_ticks=tuple(Tick(to_y(v), units.axis(v)) for v in nice_ticks(y_values, 5)),
        points=tuple(
            _point(each, spots[mark], to_y, write, labels.get(mark))
            for mark, each in ((_mark_name(n, each), each) for n, each in _numbered(search))
        ),
        budget=to_x(search["budget"]),
    )


def probes(step: StepRecord, search: Search) -> Probes | None:
    """Return the chart of the axes; ``None`` where none could shrink by itself."""
    by_axis = _by_axis(search)
    values = [value for points in by_axis.values() for _, value, _ in points]
    if not values:
        return None
    low, high = math.log10(min(values) / 1.5), math.log10(max(values) * 1.5)
    most = max(share for points in by_axis.values() for share, _, _ in points)
    to_x, to_log = linear((0.0, min(1.0, 1.15 * most)), LEFT, RIGHT), linear((low, high), BOTTOM, TOP)
    drawn = {
        axis: [(to_x(share), to_log(math.log10(value)), title) for share, value, title in points]
        for axis, points in by_axis.items()
    }
    ends = {AXES.get(axis, axis): dots[-1][:2] for axis, dots in drawn.items()}
    labels = place(ends, [dot[:2] for dots in drawn.values() for dot in dots], FRAME)
    return Probes(
        step=step.name,
        x_ticks=tuple(Tick(to_x(v), units.plain(units.share(v))) for v in nice_ticks((0.0, 1.15 * most), 5)),
        y_ticks=tuple(Tick(to_log(p), units.axis(10**p)) for p in _powers(low, high)),
        lines=tuple(
            Line(
                number,
                " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots),
                tuple(dots),
                labels[AXES.get(axis, axis)],
            )
            for number, (axis, dots) in enumerate(drawn.items())
        ),
    )


def candidates_twin(step: StepRecord, search: Search) -> Table:
    """Return every candidate with what was foretold and what was measured."""
    name, write = COSTS[search["cost"]]
    has_recovered = any(each["recovered"] is not None for each in search["candidates"])
    counts_too = search["cost"] != "params"

    def cells(each: Mapping[str, Any]) -> Iterator[Cell]:
        yield figure(each["predicted"], _nats)
        yield figure(each["divergence"], _nats, _error(each["error"]))
        if has_recovered:
            yield figure(each["recovered"], _nats, _error(each["recovered_error"]))
        yield figure(each["cost"], write)
        if counts_too:
            yield figure(each["num_parameters"], units.count)
        yield words(shape_name(each["sizes"]))

    rows = tuple(
        Row(str(number + 1), _role(each), tuple(cells(each)), "best" if each["is_chosen"] else "")
        for number, each in _numbered(search)
    )
    recovered, parameters = ("Recovered",) * has_recovered, ("Parameters",) * counts_too
    columns = ("Foretold", "Measured", *recovered, name, *parameters, "Shape")
    return Table(f"Candidates of {step.name}", columns, rows, head="Candidate")


def probes_twin(step: StepRecord, search: Search) -> Table:
    """Return every axis at every size that was tried."""
    rows = tuple(
        Row(
            f"{AXES.get(each['axis'], each['axis'])}: {each['size']} of {each['whole']}",
            "",
            (
                figure(each["size"] / each["whole"], units.share),
                figure(each["divergence"], _nats, _error(each["error"])),
            ),
        )
        for each in search["probes"]
    )
    return Table(f"Axes of {step.name}, each by itself", ("Kept", "Divergence"), rows, head="Axis")


def shape_name(sizes: Mapping[str, int]) -> str:
    """Return a shape in words: ``6 layers, hidden 192, FFN 640``."""
    return ", ".join(
        f"{n} layers" if key == "layers" else f"{SIZES.get(key, key)} {n}" for key, n in sizes.items()
    )


def _point(
    each: Mapping[str, Any],
    at: tuple[float, float],
    to_y: Scale,
    write: Callable[[float], str],
    label: Label | None,
) -> Point:
    value, error = judged(each)
    role = f" ({_role(each)})" if _role(each) else ""
    return Point(
        x=at[0],
        y=at[1],
        low=to_y(max(0.0, value - error)),
        high=to_y(value + error),
        kind="best" if each["is_chosen"] else "baseline" if each["is_even"] else "student",
        title=f"{shape_name(each['sizes'])}{role}: {_nats(value)}, {write(each['cost'])}",
        label=label,
    )


def _by_axis(search: Search) -> dict[str, list[tuple[float, float, str]]]:
    """Return removed share, divergence and title of every probe, by axis, least removed first.

    What cost nothing has no logarithm and is left out.
    """
    found: dict[str, list[tuple[float, float, str]]] = {}
    for each in search["probes"]:
        if each["divergence"] > 0:
            what = f"{each['size']} of {each['whole']} {AXES.get(each['axis'], each['axis'])}"
            title = f"{what}: {_nats(each['divergence'])}"
            point = (1 - each["size"] / each["whole"], each["divergence"], title)
            found.setdefault(each["axis"], []).append(point)
    return {axis: sorted(points) for axis, points in found.items()}


def _numbered(search: Search) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return enumerate(search["candidates"])


def _mark_name(number: int, each: Mapping[str, Any]) -> str:
    """What stands beside a candidate; those with nothing to say have a number, which is not shown."""
    return _role(each) or str(number)


def _role(each: Mapping[str, Any]) -> str:
    return ", ".join(
        word for word, holds in (("chosen", each["is_chosen"]), ("even shape", each["is_even"])) if holds
    )


def _padded(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * high or 1.0
    return linear((low - pad, high + pad), LEFT, RIGHT)


def _ticks(values: tuple[float, float], most: int) -> list[float]:
    low, high = values
    return nice_ticks(values, most) if high > low else [low]


def _powers(low: float, high: float) -> list[float]:
    """Return the logarithms of ticks: powers of ten, and their 2 and 5 where there are few."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [power + math.log10(step) for power in exponents for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    return inside


def _nats(value: float) -> str:
    return f"{units.significant(value)}{units.SPACE}nats"


def _error(value: float) -> Text:
    return Text(f"±{units.SPACE}{units.significant(value)}", (value,))
