"""Several sources in one, each with its share of the tokens."""

import json
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import or_
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, create_model

from compress import plugins
from compress.data.conversation import Document
from compress.data.sources import Part, documents_after
from compress.data.sources import is_endless as never_ends
from compress.digests import DigestMemo
from compress.plugins import StepConfig

VERSION = 1


def _entry(name: str) -> Any:
    """Return the settings of one source as an entry of a mixture."""
    base: Any = plugins.load("data.sources", name).Config
    share = "Its share of the tokens, relative to the other parts'."
    own: dict[str, Any] = {
        "source": (Literal[name], Field(description="Which source this part comes from.")),
        "weight": (float, Field(default=1.0, gt=0, description=share)),
    }
    return create_model(name, __base__=base, __doc__=base.__doc__, **own)


SOURCES = tuple(name for name in plugins.available("data.sources") if name != __name__.rpartition(".")[2])

if TYPE_CHECKING:
    Entry = Any
else:
    Entry = Annotated[reduce(or_, map(_entry, SOURCES)), Discriminator("source")]


class Config(StepConfig):
    """What to mix, and until when."""

    parts: tuple[Entry, ...] = Field(min_length=2)
    """The sources, each with its own settings and a `weight`: its share of the tokens, relative to the others'. The
    next document always comes from the part furthest behind its share."""
    on_end: Literal["stop", "repeat"] = "stop"
    """When a part has no more: ``stop`` ends the mixture, so that nothing is read twice and the shares stay true.
    ``repeat`` begins that part anew, in another order where it has one; then say when to stop with `samples` or
    `tokens`."""


def parts(config: Config, seed: int) -> list[Part]:
    """Return the parts, each with a seed of its own, which changes every time it is read anew."""
    return [
        Part(f"part {number} ({entry.source})", entry.weight, _reader(entry, seed, number))
        for number, entry in enumerate(config.parts, start=1)
    ]


def is_endless(config: Config) -> bool:
    """Return whether it goes on for ever: parts are repeated, or none of them ends."""
    return config.on_end == "repeat" or all(never_ends(_source(entry), entry) for entry in config.parts)


def digest(config: Config, memo: DigestMemo) -> str:
    """Return the parts' digests and shares, in their order, and what happens at an end."""
    parts = [
        [entry.source, _source(entry).VERSION, entry.weight, _source(entry).digest(entry, memo)]
        for entry in config.parts
    ]
    return json.dumps([config.on_end, *parts])


def _source(entry: Any) -> Any:
    return plugins.load("data.sources", entry.source)


def _reader(entry: Any, seed: int, number: int) -> Callable[[int, int], Iterator[Document]]:
    return partial(_read, entry, seed, number)


def _read(entry: Any, seed: int, number: int, passes: int, num_skipped: int = 0) -> Iterator[Document]:
    own = Random(f"mixture, {seed}, {number}, {passes}").getrandbits(32)
    return documents_after(_source(entry), entry, own, num_skipped)
