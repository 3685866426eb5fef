"""What a table of the report is made of: texts that carry the exact value they were written from."""

from collections.abc import Callable
from dataclasses import dataclass

from compress.records import Measurement
from compress.report import units


@dataclass(frozen=True)
class Text:
    """One printed text, and the values behind it (as the page's ``<data value>``)."""

    text: str
    values: tuple[float, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its main text, and smaller ones beneath it."""

    main: Text
    notes: tuple[Text, ...] = ()
    number: bool = True


@dataclass(frozen=True)
class Row:
    """A row, headed by what it is about; `kind` is how that model is drawn in the charts."""

    name: str
    note: str
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption; every row has one cell per column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    head: str = "Step"


MISSING = Cell(Text(units.NOT_MEASURED, tone="missing"))
REFERENCE = Cell(Text("reference", tone="missing"))


def figure(value: float | None, write: Callable[[float], str], *notes: Text) -> Cell:
    """Return a cell of one number, with notes; None is a cell that says "not measured"."""
    return MISSING if value is None else Cell(Text(write(value), (value,)), notes)


def words(text: str) -> Cell:
    """Return a cell of plain words."""
    return Cell(Text(text), number=False)


def measured(measurement: Measurement | None, *notes: Text, interval: bool = True) -> Cell:
    """Return a measurement in its unit, with its interval beneath where it has one and that is wanted."""
    if measurement is None:
        return MISSING
    value = Text(units.quantity(measurement.value, measurement.unit), (measurement.value,))
    width = spread(measurement, measurement.unit) if interval else ()
    return Cell(value, (*width, *notes))


def spread(measurement: Measurement, unit: str) -> tuple[Text, ...]:
    """Return the 95 % interval of a measurement as a note, or nothing."""
    low, high = measurement.low, measurement.high
    if low is None or high is None:
        return ()
    return (Text(units.interval(low, high, unit), (low, high)),)


def change_text(change: Measurement) -> Text:
    """Return a change of a share in points; it is better or worse only when its interval leaves zero out."""
    low = change.value if change.low is None else change.low
    high = change.value if change.high is None else change.high
    tone = "better" if low > 0 else "worse" if high < 0 else ""
    return Text(units.signed_points(change.value), (change.value,), tone)
