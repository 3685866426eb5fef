"""Accelerators by name: what is known of them without having one, from ``cards.yaml`` and the user's own file."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from compress.environment import home
from compress.errors import InputError, nearest
from compress.records import Record

SHIPPED = Path(__file__).with_name("cards.yaml")
USERS = "cards.yaml"
"""In ``$COMPRESS_HOME``."""
MOST_CARDS = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SEVERAL = re.compile(r"(?:(\d+)x)?(.*)")


class Card(Record):
    """An accelerator, by its datasheet."""

    name: str
    memory_bytes: int
    """What the driver reports as total; a process gets a little less."""
    bf16_flops_per_second: float
    """Dense bf16 matrix products, at peak; fp32 where it has no bf16."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """To the other cards of its machine, each way."""
    has_bf16: bool = True
    """Whether it multiplies bf16 in hardware."""


class Entry(Record):
    """What a table says of a card, in the units of datasheets."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    memory_mib: int = Field(ge=1024, le=2**30)
    bf16_tflops: float = Field(ge=1e-3, le=1e9, allow_inf_nan=False)
    memory_gb_per_second: float = Field(ge=1e-3, le=1e9, allow_inf_nan=False)
    link_gb_per_second: float = Field(ge=1e-3, le=1e9, allow_inf_nan=False)
    matches: list[str] = Field(default_factory=list)
    has_bf16: bool = True

    @field_validator("matches")
    @classmethod
    def _are_expressions(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
        return patterns

    def card(self, name: str) -> Card:
        """Return the card, in bytes and seconds."""
        return Card(
            name=name,
            memory_bytes=self.memory_mib * 2**20,
            bf16_flops_per_second=self.bf16_tflops * 1e12,
            memory_bytes_per_second=self.memory_gb_per_second * 1e9,
            link_bytes_per_second=self.link_gb_per_second * 1e9,
            has_bf16=self.has_bf16,
        )


_ENTRIES = TypeAdapter(dict[str, Entry])


def table() -> dict[str, Entry]:
    """Return what is known of cards by name: the user's first. Raises `InputError` for a file that is wrong."""
    own = home() / USERS
    users = read_table(own) if own.exists() else {}
    return {**users, **{name: entry for name, entry in _shipped().items() if name not in users}}


def read_table(file: Path) -> dict[str, Entry]:
    """Return the cards of a file. Raises `InputError` with every mistake: where, what, what is allowed."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, bytes that are no text
        raise InputError(f"{file} is not valid YAML: {error}") from error
    if content is None:  # an empty file, or comments alone
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold cards by name, each with {', '.join(Entry.model_fields)}")
    cards = {str(name): entry for name, entry in content.items()}
    wrong = [
        f"{name}: a name is lower case, such as h100-80gb" for name in cards if not _NAME.fullmatch(name)
    ]
    wrong += [f"{name}: a name that begins with a number and x means several cards"
              for name in cards if re.match(r"\d+x", name)]  # fmt: skip
    try:
        entries = _ENTRIES.validate_python(cards)
    except ValidationError as error:
        wrong += [_complaint(dict(each)) for each in error.errors()]
        entries = {}
    if wrong:
        raise InputError("\n".join(f"{file}: {each}" for each in wrong))
    return entries


def cards_named(text: str) -> tuple[Card, int]:
    """Return the card that a text such as ``h100-80gb`` or ``8xh100-80gb`` names, and how many.

    Upper case, spaces and the maker's words do not matter (``RTX 4090``), and what the driver calls a card is a name
    too. Raises `InputError` for another, with the nearest.
    """
    count, name = _split(text)
    if name == "cpu":
        raise InputError(
            f"'{text[:80]}': a processor is planned for as one machine, whatever its cores. Allowed: cpu; for several "
            "machines write `launch: {nodes: …}` in the pipeline"
        )
    known = table()
    if entry := known.get(name):
        return entry.card(name), count
    if card := card_called(re.sub(r"^\d+x", "", text.strip())):
        return card, count
    raise InputError(
        f"no card is called '{text}'{_meant(name, known)} Allowed: cpu, {', '.join(known)}, several as 8xNAME, and "
        f"what {home() / USERS} adds"
    )


def card_called(driver_name: str) -> Card | None:
    """Return the card that the driver calls so (``NVIDIA H100 80GB HBM3``); ``None`` for one of no table."""
    for name, entry in table().items():
        if any(re.search(pattern, driver_name) for pattern in entry.matches):
            return entry.card(name)
    return None


@cache
def _shipped() -> dict[str, Entry]:
    return read_table(SHIPPED)


MOST_DIGITS = 9


def _split(text: str) -> tuple[int, str]:
    """Return how many and what, the name as a table writes it."""
    several = _SEVERAL.fullmatch(re.sub(r"[\s_]+", "-", text.strip().lower()))
    assert several is not None
    written = several[1] or "1"
    count = int(written) if len(written) < MOST_DIGITS else MOST_CARDS + 1
    if not 1 <= count <= MOST_CARDS:
        raise InputError(f"'{text[:80]}': {written[:MOST_DIGITS]} cards. Allowed: 1 to {MOST_CARDS}")
    return count, re.sub(
        r"^(nvidia|tesla|geforce|rtx)-", "", re.sub(r"^(nvidia|tesla|geforce)-", "", several[2])
    )


def _meant(name: str, known: Iterable[str]) -> str:
    """Return the question which card was meant: one of those whose name begins so, else the nearest."""
    begin_so = [each for each in known if each.startswith(f"{name}-")]
    return f"; did you mean {' or '.join(map(repr, begin_so))}?" if begin_so else nearest(name, known)


def _complaint(error: dict[str, Any]) -> str:
    name, *keys = map(str, error["loc"])
    if error["type"] == "extra_forbidden":
        said = (
            f"no such setting{nearest(keys[-1], Entry.model_fields)} Allowed: {', '.join(Entry.model_fields)}"
        )
    elif error["type"] == "missing":
        said = "is missing"
    else:
        said = f"{error['msg'].removeprefix('Value error, ')}, found {error['input']!r}"
    return f"{'.'.join((name, *keys))}: {said}"
