"""Work beside training: what is kept is copied to the host at once, and written while training goes on.

Only on GPUs, whose memory is not the host's. On a processor the copy would take the memory that training needs and
writing it the cores, to save at most a twentieth of the time.
"""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compress.environment import available_memory_bytes

SPARE = 2 * 2**30
"""Bytes of host memory that a copy must leave."""
LIMITS = Path("/sys/fs/cgroup")
"""Where a container is told how much memory it may use."""


class Background:
    """One piece of work at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work. Raises what the last one raised."""
        self.settle()
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when nothing is being done. Raises what the work raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise what the work raised, if it has ended."""
        if not self.busy:
            self.settle()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised where somebody hears it
            self._error = error


class HostCopies:
    """Copies of a state on the host, in the same memory each time. The last one must not be in use any more."""

    def __init__(self, device: str) -> None:
        """`device`: where what training changes is. Tensors elsewhere are replaced, never changed, and not copied."""
        self._kind = torch.device(device).type
        self._pinned = self._kind != "cpu"
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def lacking(self, state: Any) -> int:
        """Return how many bytes of host memory are too few for a copy; at most 0 where there are enough."""
        new = [value for path, value in _tensors(state) if self._copies(value) and path not in self._kept]
        return sum(map(self._num_bytes, new)) + SPARE * bool(new) - host_memory_left()

    def of(self, state: Any) -> Any:
        """Return a copy of nested dicts and lists, complete when this returns. What shares memory shares it there."""
        copied = self._copy(state, (), {})
        if self._pinned:
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, path: tuple[object, ...], seen: dict[tuple[object, ...], Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(each, (*path, key), seen) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, (*path, place), seen) for place, each in enumerate(value))
        if not isinstance(value, Tensor) or not self._copies(value):
            return value
        local = _local(value)
        where = (local.untyped_storage()._cdata, local.storage_offset(), local.shape, local.stride())
        if where not in seen:
            seen[where] = self._fill(local, path)
        return _as_divided(seen[where], value) if isinstance(value, DTensor) else seen[where]

    def _fill(self, local: Tensor, path: tuple[object, ...]) -> Tensor:
        kept = self._kept.get(path)
        if kept is None or (kept.shape, kept.dtype) != (local.shape, local.dtype):
            kept = torch.empty(local.shape, dtype=local.dtype, pin_memory=self._pinned)
            self._kept[path] = kept
        return kept.copy_(local.detach(), non_blocking=True)

    def _copies(self, value: Tensor) -> bool:
        return _local(value).device.type == self._kind

    def _num_bytes(self, value: Tensor) -> int:
        num = _local(value).nbytes
        # Pinned memory is handed out in powers of two.
        return 2 ** math.ceil(math.log2(num)) if self._pinned and num else num


def host_memory_left() -> int:
    """Return the bytes of host memory a process may still take, by the machine and by its container."""
    left = available_memory_bytes()
    try:
        allowed, used = ((LIMITS / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        files = dict(line.split() for line in (LIMITS / "memory.stat").read_text().splitlines())
    except OSError:
        return left
    if allowed == "max":
        return left
    return min(left, int(allowed) - int(used) + int(files.get("inactive_file", 0)))


def _as_divided(part: Tensor, like: DTensor) -> Tensor:
    """Return a part on the host as what is divided as another is: so torch keeps offloaded parts (FSDP2)."""
    divided: Any = DTensor
    whole: Tensor = divided(part, like._spec, requires_grad=False)
    return whole


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _tensors(value: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, (*path, key))
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _tensors(each, (*path, place))
