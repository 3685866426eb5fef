"""Room on disk and in memory: whether a run will have enough, and what to say when the disk is full after all."""

import errno
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compress.engine.account import card_bytes, is_on_card, needed_bytes, usable_bytes, which_device
from compress.environment import available_memory_bytes
from compress.errors import DoesNotFit
from compress.machine import Card, Machine, is_elsewhere, planned_machine, this_machine
from compress.pipeline.plan import Node
from compress.quantities import format_file_size, format_memory

REHEARSED_BYTES = 1200 * 10**6
"""Of a card's memory for a worker of a rehearsal: a CUDA context takes about 0.6 GB, its tiny model and cuBLAS's
workspace little, and a step on two processes, or one that waits for work it submitted, has two contexts."""
REMEDY = "Free some (`compress gc` deletes what no kept run needs), or point COMPRESS_HOME at a larger disk."


def most_workers(num_cores: int) -> int:
    """Return how many workers of a rehearsal may work at once: one a core, where a card has room for all of them.

    All use the first card, whose memory that is; the least there is stands for it.
    """
    machine = this_machine()
    if machine.card is None:
        return num_cores
    return max(1, min(num_cores, card_bytes(machine) // REHEARSED_BYTES))


def shortages(missing: Iterable[Node], root: Path) -> Iterator[str]:
    """Yield all that a run that makes these nodes lacks, in words; nothing when it seems to fit.

    Each node's disk and memory are estimates. Memory is that of the card where one is planned for and has the work,
    else that of this machine. Of another machine (`compress plan --device`) disk and own memory are not known.
    """
    missing, machine = tuple(missing), planned_machine()
    if not is_elsewhere():
        yield from _disk_shortage(missing, root)
    for node in missing:
        yield from _named_card_shortage(node, machine)
        if is_on_card(node, machine):
            yield from _card_shortage(node, machine)
        else:
            yield from _memory_shortage(node, needed_bytes(node, machine))


def card_remarks(nodes: Iterable[Node]) -> Iterator[str]:
    """Yield where settings ask for more cards than the planned machine has, in words."""
    machine = planned_machine()
    if machine.card is None:
        return
    for node in nodes:
        if (processes := _processes(node)) > machine.num_cards:
            yield (
                f"step '{node.name}': `launch.processes: {processes}` needs as many cards on each machine; planned for "
                f"{machine.num_cards} (`--device {processes}xNAME` names several)"
            )
        if (card := node.work.named_card) and card.number >= machine.num_cards:
            yield (
                f"step '{node.name}': `{card.setting}` needs {card.number + 1} cards; planned for {machine.num_cards} "
                f"(`--device {card.number + 1}xNAME` names several)"
            )


def _processes(node: Node) -> int:
    """Return how many processes a node starts on each machine."""
    launch = getattr(node.config, "launch", None)
    return int(launch.processes) if launch else 1


def _disk_shortage(missing: Sequence[Node], root: Path) -> Iterator[str]:
    free = _free_bytes(root)
    wanted = disk_bytes(missing)
    if wanted > free:
        where = f"{root} (COMPRESS_HOME), where {format_file_size(free)} are free"
        yield f"the run will write {format_file_size(wanted)} to {where}. {REMEDY}"


def disk_bytes(missing: Iterable[Node]) -> int:
    """Return about what making these nodes writes."""
    return sum(n.work.disk_bytes or (n.spec.weight_bytes if n.spec else 0) for n in missing)


def _card_shortage(node: Node, machine: Machine) -> Iterator[str]:
    """Yield what a node lacks on the machine's cards. Too few of them is only said of this machine's."""
    assert machine.card is not None
    if not is_elsewhere() and (processes := _processes(node)) > machine.num_cards:
        there = "one is" if machine.num_cards == 1 else f"{machine.num_cards} are"
        yield f"step '{node.name}' is launched on {processes} cards, of which {there} here (`launch.processes`)."
    needed = needed_bytes(node, machine)
    if needed > card_bytes(machine):
        yield (
            f"step '{node.name}' needs about {format_memory(needed)} on {which_device(node, 'card')}; "
            f"{_gives(machine.card)}.{_remedies(node)}"
        )
    yield from _memory_shortage(node, node.work.host_memory_bytes)


def _named_card_shortage(node: Node, machine: Machine) -> Iterator[str]:
    """Yield what is wrong with a card that settings name: it is not there, or too small. Cards of elsewhere may be."""
    if (card := node.work.named_card) is None:
        return
    if card.number >= machine.num_cards and (machine.card is None or not is_elsewhere()):
        last = machine.num_cards - 1
        there = "no card" if last < 0 else "cuda:0" if last == 0 else f"cuda:0 to cuda:{last}"
        yield f"step '{node.name}' wants a card of its own for `{card.setting}`: there is {there}."
    needed = sum(item.num_bytes for item in card.memory)
    if machine.card is not None and needed > card_bytes(machine):
        yield (
            f"step '{node.name}' needs about {format_memory(needed)} on the card of `{card.setting}`; "
            f"{_gives(machine.card)}."
        )


def _gives(card: Card) -> str:
    """Return what a process can have of a card, in words."""
    has, whole = format_memory(usable_bytes(card)), format_memory(card.memory_bytes)
    return f"{card.name} gives a process {has} of its {whole}"


def _memory_shortage(node: Node, needed: int) -> Iterator[str]:
    """Yield what a node lacks of this machine's own memory; of another's nothing is known where it has cards."""
    if planned_machine().card is not None and is_elsewhere():
        return
    available = available_memory_bytes()
    if needed > available:
        yield (
            f"step '{node.name}' needs about {format_memory(needed)} of memory; "
            f"{format_memory(available)} are available on this machine.{_remedies(node)}"
        )


def _remedies(node: Node) -> str:
    return f" What would take less: {'; '.join(node.work.remedies)}." if node.work.remedies else ""


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error says that nothing more can be written, in whatever words of the library that wrote."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    if "No space left on device" in str(error):  # safetensors
        return True
    return error.__context__ is not None and disk_is_full(error.__context__)  # torch.save


def disk_full(root: Path, error: BaseException | None = None) -> str:
    """Return what to say of a full disk: which one, how much is free now, what to do.

    It is that of the store, unless the error names a file on another.
    """
    name = getattr(error, "filename", None)
    folder = Path(name).absolute().parent if isinstance(name, str) else root
    if folder.exists() and root.exists() and folder.stat().st_dev != root.stat().st_dev:
        return f"no room left on the disk of {name} ({format_file_size(_free_bytes(folder))} are free now)"
    free = format_file_size(_free_bytes(root))
    return f"no room left on the disk of {root} (COMPRESS_HOME; {free} are free now). {REMEDY}"


@contextmanager
def full_disk_told(root: Path) -> Iterator[None]:
    """Raise `DoesNotFit`, saying what to do, where something cannot be written because the disk is full."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise DoesNotFit(disk_full(root, error)) from error


@contextmanager
def unless_full() -> Iterator[None]:
    """Go on where something cannot be written because the disk is full: for notes beside a failure that is told."""
    try:
        yield
    except OSError as error:
        if not disk_is_full(error):
            raise


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
