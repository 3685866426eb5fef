"""Several streams of documents as one in which each has its share of the tokens.

The next document is always of the stream that is furthest behind its share: no chance is involved, and the shares are
kept at every point to within one document.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compress.data.encode import Encoded
from compress.errors import InputError
from compress.records import Record


@dataclass(frozen=True)
class Stream:
    """One part of a mixture."""

    name: str
    weight: float
    """Its share of the tokens, relative to the others'."""
    read: Callable[[int, int], Iterator[Encoded]]
    """Its documents, given how often they have been read before, and how many of them to skip."""


class Place(Record):
    """How far a stream has been read."""

    passes: int = 0
    """How often, before this time."""
    num_read: int = 0
    """Documents of this time, blank ones included."""
    num_tokens: int = 0
    """Of these."""
    taken: float = 0.0
    """Its tokens of all times, each divided by its weight."""


def interleave(
    streams: Sequence[Stream], repeat: bool, places: list[Place] | None = None
) -> Iterator[Encoded]:
    """Yield documents until the stream whose turn it is has none left; with `repeat` it begins anew, without end.

    `places`: where each stream is taken up; kept up to date with what was yielded, so that a later call goes on there.
    Raises `InputError` for a stream that is to be repeated and holds nothing.
    """
    places = [Place() for _ in streams] if places is None else places
    readers = [
        stream.read(place.passes, place.num_read) for stream, place in zip(streams, places, strict=True)
    ]
    while True:
        turn = min(range(len(streams)), key=lambda number: places[number].taken)
        stream, place = streams[turn], places[turn]
        while (document := next(readers[turn], None)) is None:
            if not repeat:
                return
            if place.num_tokens == 0:
                raise InputError(f"the mixture's {stream.name} holds no text to repeat")
            place = places[turn] = Place(passes=place.passes + 1, taken=place.taken)
            readers[turn] = stream.read(place.passes, 0)
        places[turn] = Place(
            passes=place.passes,
            num_read=document.number,
            num_tokens=place.num_tokens + len(document.ids),
            taken=place.taken + len(document.ids) / stream.weight,
        )
        yield document
