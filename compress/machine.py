"""The machine that work is planned for: this one, or one that was named (`compress plan --device h100-80gb`).

Torch-free. Estimates ask `planned_machine`, so that a laptop can plan what a rented card will do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from compress.accelerators import cards_to_compute_on
from compress.cards import Card, card_called, cards_named
from compress.nvml import Seen
from compress.quantities import format_memory
from compress.records import Record

__all__ = [
    "Card",
    "Machine",
    "describe",
    "is_elsewhere",
    "machine_named",
    "planned_machine",
    "planning_for",
    "this_machine",
]

GUESSED = Card(
    name="a card of no table",
    memory_bytes=16 * 2**30,
    bf16_flops_per_second=1e14,
    memory_bytes_per_second=6e11,
    link_bytes_per_second=3.2e10,
)
"""Rates between those of a workstation's card and a small server's; its memory only where NVML does not tell."""


class Machine(Record):
    """Where work runs: a processor alone, or with cards of one kind."""

    card: Card | None = None
    num_cards: int = 0
    is_guess: bool = False
    """Whether the card is in no table, so that its rates (and, without NVML, its memory) are guesses."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""
        return "gpu" if self.card else "cpu"


_planned: ContextVar[Machine | None] = ContextVar("planned machine", default=None)


def this_machine() -> Machine:
    """Return the machine this process runs on: the memory its driver tells, the rates of the table.

    Where cards differ, work must fit the one with the least memory, so it stands for all.
    """
    seen = cards_to_compute_on()
    if not seen:
        return Machine()
    known = [(_card(each), card_called(each.name) is None) for each in seen]
    card, is_guess = min(known, key=lambda each: each[0].memory_bytes)
    return Machine(card=card, num_cards=len(seen), is_guess=is_guess)


def machine_named(text: str) -> Machine:
    """Return the machine that ``cpu``, ``h100-80gb`` or ``8xh100-80gb`` names. Raises `InputError` for another."""
    if text.strip().lower() == "cpu":
        return Machine()
    card, count = cards_named(text)
    return Machine(card=card, num_cards=count)


def planned_machine() -> Machine:
    """Return the machine that work is planned for: this one outside `planning_for`."""
    return _planned.get() or this_machine()


def is_elsewhere() -> bool:
    """Return whether work is planned for another machine than this, whose store and disk say nothing about it."""
    return planned_machine() != this_machine()


@contextmanager
def planning_for(machine: Machine) -> Iterator[None]:
    """Plan for another machine inside this block."""
    token = _planned.set(machine)
    try:
        yield
    finally:
        _planned.reset(token)


def describe(machine: Machine) -> str:
    """Return the machine in words, with its memory: ``8 cards h100-80gb, 79.6 GiB each``."""
    if machine.card is None:
        return "a processor alone"
    memory = format_memory(machine.card.memory_bytes)
    remark = "; it is in no table, so its speed is a guess" if machine.is_guess else ""
    remark += "" if machine.card.has_bf16 else "; it has no bf16, so it computes in fp32"
    if machine.num_cards == 1:
        return f"1 card {machine.card.name}, {memory}{remark}"
    return f"{machine.num_cards} cards {machine.card.name}, {memory} each{remark}"


def _card(seen: Seen) -> Card:
    card = card_called(seen.name) or GUESSED
    if seen.is_part:  # as fast as its share of the whole card's memory
        share = (seen.memory_bytes or GUESSED.memory_bytes) / card.memory_bytes
        card = card.model_copy(
            update={
                "bf16_flops_per_second": share * card.bf16_flops_per_second,
                "memory_bytes_per_second": share * card.memory_bytes_per_second,
            }
        )
    return card.model_copy(update={"name": seen.name, "memory_bytes": seen.memory_bytes or card.memory_bytes})
