"""Room on disk and in memory: whether a run will have enough, and what to say when the disk is full after all."""

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.engine.rates import estimated_memory_bytes
from compress.environment import available_memory_bytes, device_class
from compress.errors import DoesNotFit
from compress.pipeline.plan import Node

GIB = 2**30
REMEDY = "Free some (`compress gc` deletes what no kept run needs), or point COMPRESS_HOME at a larger disk."


def shortage(missing: Iterable[Node], root: Path) -> str | None:
    """Return what a run that makes these nodes lacks, in words; ``None`` when it seems to fit.

    Each node's disk and memory are estimates. Memory is that of the processor: a card's is not looked at.
    """
    missing = tuple(missing)
    free = _free_bytes(root)
    wanted = sum(n.work.disk_bytes or (n.spec.weight_bytes if n.spec else 0) for n in missing)
    if wanted > free:
        where = f"{root} (COMPRESS_HOME), where {_amount(free)} are free"
        return f"the run will write {_amount(wanted)} to {where}. {REMEDY}"
    available = available_memory_bytes()
    for node in missing:
        needed = estimated_memory_bytes(node) or 0
        if device_class() == "cpu" and needed > available:
            return (
                f"step '{node.name}' needs about {_amount(needed)} of memory; "
                f"{_amount(available)} are available on this machine."
            )
    return None


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
        return f"no room left on the disk of {name} ({_amount(_free_bytes(folder))} are free now)"
    return f"no room left on the disk of {root} (COMPRESS_HOME; {_amount(_free_bytes(root))} are free now). {REMEDY}"


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


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"
