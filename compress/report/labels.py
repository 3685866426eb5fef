"""Where the names stand beside their marks: each at the first spot that covers least of what is there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CHARACTER = 7.2
"""Width of a letter at the charts' text size, a little generous: fonts differ."""

HEIGHT = 15.0
REACH = 9.0
"""How far a name keeps from its mark."""

Spot = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A name's anchor point on its base line, and which end of it stands there."""

    x: float
    y: float
    anchor: str
    text: str


def place(
    named: Mapping[str, Spot], marks: Iterable[Spot], frame: Box, kept_free: Iterable[Label] = ()
) -> dict[str, Label]:
    """Return where each name stands: greedy, in the given order, so equal input gives equal output."""
    taken = [*_around(marks), *map(_box, kept_free)]
    labels: dict[str, Label] = {}
    for name, (x, y) in named.items():
        text = name if len(name) <= 22 else f"{name[:21]}…"
        spots = [(label, _box(label)) for label in _spots(x, y, text)]
        label, box = min(spots, key=lambda spot: _cost(spot[1], taken, frame))
        labels[name] = label
        taken.append(box)
    return labels


def along(y: float, text: str, marks: Iterable[Spot], frame: Box) -> Label:
    """Return where the name of a level line stands: where it covers fewest marks."""
    left, right = frame[0], frame[2]
    taken = _around(marks)
    width = len(text) * CHARACTER
    steps = range(int((right - left - width) // 12) + 1)
    spots = [Label(right - 12 * i, y + down, "end", text) for i in steps for down in (-5, 14)]
    return min(spots, key=lambda label: _cost(_box(label), taken, frame))


def _around(marks: Iterable[Spot]) -> list[Box]:
    return [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]


def _spots(x: float, y: float, text: str) -> list[Label]:
    near, far = REACH, 2.2 * REACH
    return [
        Label(x + near, y + 4, "start", text),
        Label(x - near, y + 4, "end", text),
        Label(x, y - near, "middle", text),
        Label(x, y + near + 10, "middle", text),
        Label(x + near, y - near, "start", text),
        Label(x + near, y + near + 8, "start", text),
        Label(x - near, y - near, "end", text),
        Label(x - near, y + near + 8, "end", text),
        Label(x, y - far, "middle", text),
        Label(x, y + far + 10, "middle", text),
    ]


def _box(label: Label) -> Box:
    width = len(label.text) * CHARACTER
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return left, label.y - HEIGHT + 3, left + width, label.y + 3


def _cost(box: Box, taken: list[Box], frame: Box) -> float:
    """The area covered of other names and marks; what sticks out of the frame counts ten times."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_overlap(box, other) for other in taken) + 10 * (area - _overlap(box, frame))


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
