"""The machine that work is planned for: this one, or one that was named (`compress plan --device h100-80gb`).

Torch-free. Estimates ask `planned_machine`, so that a laptop can plan what a rented card will do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from compress.environment import device_class
from compress.records import Record


class Card(Record):
    """An accelerator, by its datasheet."""

    name: str
    memory_bytes: int
    """What the driver reports as total; a process gets a little less."""
    bf16_flops_per_second: float
    """Dense bf16 matrix products, at peak."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """To the other cards of its machine, each way."""


class Machine(Record):
    """Where work runs: a processor alone, or with cards of one kind."""

    card: Card | None = None
    num_cards: int = 0

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""
        return "gpu" if self.card else "cpu"


_planned: ContextVar[Machine | None] = ContextVar("planned machine", default=None)


def this_machine() -> Machine:
    """Return the machine this process runs on."""
    names = [] if device_class() == "cpu" else device_class().split(", ")
    if not names:
        return Machine()
    card = Card(
        name=names[0],
        memory_bytes=80 * 10**9,
        bf16_flops_per_second=1e15,
        memory_bytes_per_second=2e12,
        link_bytes_per_second=6.4e10,
    )
    return Machine(card=card, num_cards=len(names))


def planned_machine() -> Machine:
    """Return the machine that work is planned for: this one outside `planning_for`."""
    return _planned.get() or this_machine()


@contextmanager
def planning_for(machine: Machine) -> Iterator[None]:
    """Plan for another machine inside this block."""
    token = _planned.set(machine)
    try:
        yield
    finally:
        _planned.reset(token)
