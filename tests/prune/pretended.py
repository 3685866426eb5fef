"""A GPU that is not there: tensors moved to it stay where they are, and operations that mix devices fail as there.

Numbers are the CPU's, so what runs on it must give the same bytes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda")
ANYWHERE = {Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__}
"""What takes tensors of the CPU beside its own: copies, and indices."""


class PretendedGPU(TorchFunctionMode):
    """Remembers which storages are on the GPU; every result is where its operands are."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used again
        self.moved = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return DEVICE if self.has(args[0]) else func(*args)
        if func in (Tensor.to, Tensor.cpu):
            return self._move(func, args, kwargs)
        operands = [t for t in _tensors([args, kwargs]) if not t.is_meta]
        here = {self.has(t) for t in operands if t.dim() > 0}
        if len(here) == 2 and func not in ANYWHERE:
            raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")
        if func is Tensor.numpy and True in here:
            raise TypeError("cannot convert a tensor on the GPU to numpy")
        there = any(map(self.has, operands[:1])) if func in ANYWHERE else True in here
        if "device" in kwargs:
            there = kwargs["device"] is not None and torch.device(kwargs["device"]) == DEVICE
            kwargs = kwargs | ({"device": "cpu"} if there else {})
        result = func(*args, **kwargs)
        if there:
            self._put(result)
        return result

    def has(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage()._cdata in self._there

    def _move(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, *wanted = args
        there = False if func is Tensor.cpu else self.has(tensor)
        dtype = tensor.dtype
        for value in [*wanted, *kwargs.values()]:
            if isinstance(value, Tensor):
                there, dtype = self.has(value), value.dtype
            elif isinstance(value, str | torch.device):
                there = torch.device(value) == DEVICE
            elif isinstance(value, torch.dtype):
                dtype = value
        moves = there != self.has(tensor)
        result = tensor.to(dtype)
        if moves and result.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            result = result.clone()
        if there:
            self._put(result)
            self.moved += moves
        return result

    def _put(self, result: Any) -> None:
        for tensor in _tensors(result):
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._there[storage._cdata] = storage


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for each in value for t in _tensors(each)] if isinstance(value, list | tuple) else []
