"""CUDA graphs of a step: all its kernels launched at once, so that Python's time is not the model's.

A step that waits for the device in its middle cannot be recorded, and a recording that fails leaves the CUDA allocator
and its random numbers in disorder. So the step first runs once where every operation is looked at.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.backends.fixed_decoding import CannotRepeat, Graph

WARM_UP = 3
"""Steps before the one that is recorded: libraries choose their kernels and take their workspaces in them."""

WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::bincount",
}
"""Operations whose result, or its size, the processor has to know."""

COPYING = {"aten::_to_copy", "aten::copy_"}


class GraphSafety(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has none
    """Raises `CannotRepeat` at the first operation in its block that waits for the device or leaves it.

    Where a custom operator is written in Python, what it calls inside is not seen.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name in WAITING or (name.startswith("aten::index") and _has_boolean_index(args)):
            raise CannotRepeat(f"a step waits for the device in {name}")
        result = func(*args, **(kwargs or {}))
        devices = _devices((args, kwargs), name in COPYING) | _devices(result, name in COPYING)
        if len(devices) > 1:
            raise CannotRepeat(f"a step moves data between {' and '.join(sorted(devices))} in {name}")
        return result


def check_graph_safe(step: Callable[[], None]) -> None:
    """Run the step once. Raises `CannotRepeat` where a graph could not hold it."""
    with GraphSafety():  # type: ignore[no-untyped-call]
        step()


class CudaRecorder:
    """Records steps on one device. Graphs of one recorder share the memory of what they compute in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, step: Callable[[], None]) -> Graph:
        """Return the step as a graph, after it ran a few times. Raises `CannotRepeat`."""
        check_graph_safe(step)
        before = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.inference_mode():
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UP):
                        step()
                before.wait_stream(self._stream)
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    step()
        except RuntimeError as error:
            raise CannotRepeat(f"recording failed: {_first_line(error)}") from error
        finally:
            # After a recording that failed, torch leaves its own stream as the current one.
            torch.cuda.set_stream(before)
        return graph


def _has_boolean_index(args: Iterable[Any]) -> bool:
    _, *indices = args
    return any(
        isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(indices[:1])
    )


def _devices(tree: Any, numbers_too: bool) -> set[str]:
    """Return where tensors are; single numbers of a processor only when asked: kernels take those as arguments."""
    return {
        str(leaf.device)
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and (numbers_too or leaf.dim() > 0 or leaf.device.type != "cpu")
    }


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
