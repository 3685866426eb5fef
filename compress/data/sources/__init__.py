"""Where texts come from: one source a file.

A source has ``Config``, ``VERSION``, ``digest(config, memo) -> str`` (what identifies the content: it goes into cache
keys, so every setting that changes what is read is in it; files are hashed through the memo) and
``documents(config, seed) -> Iterator[Document]``: texts and conversations, one at a time. One that mixes others has
``parts(config, seed) -> list[Part]`` instead. One that can go on for ever has ``is_endless(config) -> bool``. One that
need not read what it skips has ``documents_after(config, seed, num) -> Iterator[Document]``: all but the first `num`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compress.data.conversation import Document


@dataclass(frozen=True)
class Part:
    """One of the sources in a mixture."""

    name: str
    weight: float
    """Its share of the tokens, relative to the others'."""
    read: Callable[[int, int], Iterator[Document]]
    """Its documents, given how often they have been read before, and how many of them to skip."""


def is_endless(source: Any, config: Any) -> bool:
    """Return whether a source's documents never end: who reads them must say when to stop."""
    return hasattr(source, "is_endless") and bool(source.is_endless(config))


def documents_after(source: Any, config: Any, seed: int, num: int) -> Iterator[Document]:
    """Return a source's documents but for the first `num`, which are read only where the source cannot pass over them.

    Raises as its ``documents`` does.
    """
    after: Iterator[Document]
    if num and hasattr(source, "documents_after"):
        after = source.documents_after(config, seed, num)
    else:
        after = islice(source.documents(config, seed), num, None)
    return after
