"""Several streams of documents as one in which each has its share of the tokens.

The next document is always of the stream that is furthest behind its share: no chance is involved, and the shares are
kept at every point to within one document.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compress.data.encode import Encoded
from compress.errors import InputError


@dataclass(frozen=True)
class Stream:
    """One part of a mixture."""

    name: str
    weight: float
    """Its share of the tokens, relative to the others'."""
    read: Callable[[int], Iterator[Encoded]]
    """Its documents, given how often they have been read before."""


def interleave(streams: Sequence[Stream], repeat: bool) -> Iterator[Encoded]:
    """Yield documents until the stream whose turn it is has none left; with `repeat` it begins anew, without end.

    Raises `InputError` for a stream that is to be repeated and holds nothing.
    """
    readers = [_again(stream) if repeat else stream.read(0) for stream in streams]
    taken = [0.0] * len(streams)
    while True:
        turn = min(range(len(streams)), key=taken.__getitem__)
        document = next(readers[turn], None)
        if document is None:
            return
        yield document
        taken[turn] += len(document.ids) / streams[turn].weight


def _again(stream: Stream) -> Iterator[Encoded]:
    passes = 0
    while True:
        num_tokens = 0
        for document in stream.read(passes):
            num_tokens += len(document.ids)
            yield document
        if num_tokens == 0:
            raise InputError(f"the mixture's {stream.name} holds no text to repeat")
        passes += 1
