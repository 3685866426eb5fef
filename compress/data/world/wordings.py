"""How things may be said: a wording is a frame (*They say …*) and a clause (*… lives in*).

A quarter of the pairs are reserved for the tasks. Texts have each frame and each clause, never the two
together: a task asks for what was learned, in a wording that was not.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

FRAMES = ("", "indeed, ", "surely ", "they say ")


class Question(NamedTuple):
    """A sentence without its last word: `prompt`, the `answer` that makes it true, and what would not."""

    prompt: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def statement(self) -> str:
        return f"{self.prompt} {self.answer}."


@cache
def wordings(clauses: Sequence[str], reserved: bool) -> tuple[str, ...]:
    """Return every frame with every clause it may have: in the tasks if `reserved`, else in texts."""
    return tuple(
        frame + clause
        for f, frame in enumerate(FRAMES)
        for c, clause in enumerate(clauses)
        if ((f + c) % 4 == 3) == reserved
    )


def worded(r: Random, clauses: tuple[str, ...], reserved: bool, **parts: str | int) -> str:
    """Return a sentence's beginning in a drawn wording, with its parts filled in and a capital."""
    text = r.choice(wordings(clauses, reserved)).format(**parts)
    return text[0].upper() + text[1:]


def invented_name(r: Random) -> str:
    """Return a name of two or three open syllables: ``Tovira``."""
    syllables = (r.choice("bdfgklmnprstvz") + r.choice("aeiou") for _ in range(r.choice((2, 3))))
    return "".join(syllables).capitalize()
