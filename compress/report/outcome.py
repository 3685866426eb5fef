"""A step opened: its settings as they were written, and what came of it as people read it.

A fact is any JSON a step thought worth a line. Its name tells the unit by how it ends; the page keeps the exact
value of what is rounded.
"""

from collections.abc import Callable, Iterator
from functools import partial

from compress.records import JsonValue, StepRecord
from compress.report import searches, units
from compress.report.cells import Text
from compress.report.looks import HELD_OUT, finite
from compress.report.terminal import flattened, printed

LONGEST = 600
"""Characters of one setting or fact that are printed; the record holds the rest."""

BY_ENDING: dict[str, Callable[[float], str]] = {
    "tokens_per_second": partial(units.quantity, unit="tokens/s"),
    "memory_bytes": units.memory,
    "_bytes": units.file_size,
    "_seconds": units.duration,
    "_ms": partial(units.quantity, unit="ms"),
    "loss": lambda value: f"{units.axis(value)}{units.SPACE}nats",
    "_rate": units.share,
    "_share": units.share,
}

Line = tuple[str, Text]


def settings(step: StepRecord) -> list[Line]:
    """Return a step's settings under the names they have in a pipeline file."""
    lines = flattened(step.settings, "") if step.settings else ()
    return [(name, Text("not set" if value == "null" else _cut(value))) for name, value in lines]


def found(step: StepRecord) -> list[Line]:
    """Return a step's facts, named in words; a search has a section of its own."""
    drawn = {"search"} if searches.search_of(step) else set()
    return [
        line for name, value in step.facts.items() if name not in drawn for line in _fact(step, name, value)
    ]


def _fact(step: StepRecord, name: str, value: JsonValue) -> Iterator[Line]:
    if name == "before" and isinstance(value, dict):
        yield from _before(value)
    elif name == "learned_tokens":
        yield "learned tokens", _learned(value, step.facts.get("tokens"))
    elif name == "bit_exact":
        why = step.facts.get("bit_exact_ended_by")
        yield "exact to the bit", Text("yes") if value else Text(f"no: {why}" if why else "no", tone="worse")
    elif name != "bit_exact_ended_by":
        yield from _lines(name, value)


def _before(value: dict[str, dict[str, JsonValue]]) -> Iterator[Line]:
    """What was seen before the first step."""
    for name, seen in value.get("held_out", {}).items():
        called, unit = HELD_OUT.get(name, (f"Held-out {_in_words(name)}", ""))
        yield (
            f"before training: {called}",
            _text(seen, partial(units.quantity, unit=unit)),
        )
    for task, share in value.get("tasks", {}).items():
        yield f"before training: {task}", _text(share, units.share)


def _learned(value: JsonValue, of: JsonValue) -> Text:
    """Tokens that something was learned from: padding and the questions of a chat are only read."""
    whole = finite(of)
    known = finite(value)
    share = f" ({units.share(known / whole)} of the tokens)" if known is not None and whole else ""
    return Text(f"{_plain(value)}{share}")


def _lines(name: str, value: JsonValue) -> Iterator[Line]:
    """A flat dictionary is a line for each of its values; only what is no count may be in the unit of its name."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            inherited = _writer(name) if isinstance(each, float) else None
            yield f"{_in_words(name)}: {_in_words(key)}", _text(each, _writer(key) or inherited)
    else:
        yield _in_words(name), _text(value, _writer(name))


def _text(value: JsonValue, write: Callable[[float], str] | None) -> Text:
    number = finite(value)
    if number is not None and (isinstance(value, float) or write) and not isinstance(value, bool):
        return Text((write or units.axis)(number), (number,))
    return Text(_cut(_plain(value)))


def _plain(value: JsonValue) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace(",", units.SPACE)
    if isinstance(value, float) and finite(value) is not None:
        return units.axis(value)
    if isinstance(value, list) and value and not any(isinstance(each, dict) for each in value):
        return ", ".join(map(_plain, value))
    return printed(value)


def _writer(name: str) -> Callable[[float], str] | None:
    return next((write for ending, write in BY_ENDING.items() if name.endswith(ending)), None)


def _in_words(name: str) -> str:
    return name.replace("_", " ")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
