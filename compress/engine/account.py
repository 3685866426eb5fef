"""The memory of a step, added up beside what the machine has, so that a reader can check it."""

from collections.abc import Generator, Iterator, Sequence

from compress.engine.rates import estimated_memory_bytes
from compress.machine import Card, Machine
from compress.pipeline.plan import Node
from compress.quantities import format_memory
from compress.records import MemoryItem

DRIVER_BYTES = 768 * 2**20
"""What the driver keeps of a card: CUDA shows 0.3 to 0.85 GiB less than NVML of those in the table."""
SMALL_BYTES = 2 * 2**30
"""Without a card, nobody asks where less than this goes."""
WIDTH = 12


def is_on_card(node: Node, machine: Machine) -> bool:
    """Return whether a node's memory is that of a card."""
    return machine.card is not None and not node.work.on_processor


def needed_bytes(node: Node, machine: Machine) -> int:
    """Return a node's peak on each device: of the card, or of a worker process with all it imports. 0 is unknown."""
    if is_on_card(node, machine):
        return node.work.peak_memory_bytes
    return estimated_memory_bytes(node) or 0


def card_bytes(machine: Machine) -> int:
    """Return what a process can have of the machine's card."""
    assert machine.card is not None
    return usable_bytes(machine.card)


def usable_bytes(card: Card) -> int:
    """Return what a process can have of a card."""
    return card.memory_bytes - DRIVER_BYTES


def account(node: Node, machine: Machine) -> Iterator[str]:
    """Yield lines that add up a node's memory, item by item; none where it has no items, or is small on a processor.

    In GiB to three digits after the point, each rounded by itself: what stands there adds up exactly.
    """
    if not node.work.memory or (machine.card is None and node.work.peak_memory_bytes < SMALL_BYTES):
        return
    device = "card" if machine.card else "machine"
    yield f"memory of '{node.name}' ({node.use}) on {which_of(node, device)}, when it holds most:"
    total = yield from _added_up(node.work.memory)
    if machine.card is not None:
        has, driver = _thousandths(machine.card.memory_bytes), _thousandths(DRIVER_BYTES)
        spare = has - driver - total
        yield _line(has, f"has {machine.card.name}")
        yield _line(driver, "of it its driver keeps")
        word = "spare" if spare >= 0 else "too much"
        yield _line(abs(spare), f"{word} ({abs(spare) / has:.1%} of the card)")
        if node.work.host_memory_bytes:
            yield f"  beside it the machine holds about {format_memory(node.work.host_memory_bytes)}"
    if (named := node.work.named_card) and named.memory:
        yield f"memory of '{node.name}' on the card of `{named.setting}`, when it holds most:"
        yield from _added_up(named.memory)


def which_device(node: Node, device: str) -> str:
    """Return which device reaches a node's peak: ``the card``, ``each card``, or ``one card``."""
    if node.work.devices == 1:
        return f"the {device}"
    return f"one {device}" if node.work.is_peak_of_one else f"each {device}"


def which_of(node: Node, device: str) -> str:
    """Return the same with how many there are: ``each of 8 cards``."""
    devices = node.work.devices
    if devices == 1:
        return f"the {device}"
    return f"{'one' if node.work.is_peak_of_one else 'each'} of {devices} {device}s"


def _added_up(items: Sequence[MemoryItem]) -> Generator[str, None, int]:
    """Yield a line for each item and one for all; return that one's number."""
    numbers = [_thousandths(item.num_bytes) for item in items]
    for number, item in zip(numbers, items, strict=True):
        yield _line(number, item.name)
    yield _line(sum(numbers), "in all")
    return sum(numbers)


def _thousandths(num_bytes: int) -> int:
    """Return thousandths of a GiB."""
    return round(1000 * num_bytes / 2**30)


def _line(thousandths: int, what: str) -> str:
    return f"{thousandths / 1000:>{WIDTH}.3f} GiB  {what}"
