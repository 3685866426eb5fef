"""A teacher whose layers wait in host memory, each copied to the device when its turn comes.

Two places on the device take the layers in turn: while one layer runs, the next is copied beside it. A place is written
again only when the layer in it has run, so that however far ahead work is queued, no third layer is ever there. The
teacher runs without gradients: nothing of a layer is asked for after it has run.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import InputError

ALIGNMENT = 256
"""Bytes between which tensors begin, as an allocator would have them."""


def offload_layers(model: PreTrainedModel, device: str) -> None:
    """Keep a model's layers in host memory and run them on the device; all else is moved there.

    What it computes is what it would compute with all its weights on the device. Raises `InputError` for a model whose
    layers are not known.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise InputError(
            f"teacher_device: offload: the layers of a type '{model.config.model_type}' model are not known. "
            "Allowed: auto, cpu, or another GPU"
        )
    on_gpu = torch.device(device).type == "cuda"
    stored = [_Stored.of(layer, on_gpu) for layer in layers]
    inside = {id(tensor) for each in stored for tensor in each.tensors}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    turns = _Turns(stored, device)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: turns.begin(index))
        layer.register_forward_hook(lambda *_, index=index: turns.end(index))


@dataclass(frozen=True)
class _Stored:
    """A layer's tensors, and their bytes in host memory."""

    tensors: list[Tensor]
    hosts: list[Tensor]

    @classmethod
    def of(cls, layer: nn.Module, pinned: bool) -> "_Stored":
        tensors = [*layer.parameters(), *layer.buffers()]
        for tensor in tensors:
            tensor.data = tensor.data.cpu()
            if pinned:  # only from there are copies made beside other work
                tensor.data = tensor.data.pin_memory()
        return cls(tensors, [tensor.data for tensor in tensors])

    @property
    def num_bytes(self) -> int:
        return sum(_aligned(host.nbytes) for host in self.hosts)

    def copied_to(self, place: Tensor) -> list[Tensor]:
        """Return copies of its tensors inside a place, a tensor of bytes."""
        copies, start = [], 0
        for host in self.hosts:
            copy = place[start : start + host.nbytes].view(host.dtype).view(host.shape)
            copies.append(copy.copy_(host, non_blocking=True))
            start += _aligned(host.nbytes)
        return copies


@dataclass
class _Turns:
    """Which layers are on the device."""

    layers: list[_Stored]
    device: str
    places: list[Tensor] = field(init=False)
    copies: dict[int, list[Tensor]] = field(default_factory=dict)
    """Of the layer that runs, and of the one that is next."""
    stream: Any = None
    """Where a GPU copies, beside what it computes."""
    copied: dict[int, Any] = field(default_factory=dict)
    freed: dict[int, Any] = field(default_factory=dict)
    """When a layer was copied, and when a place was last read: events of a GPU."""

    def __post_init__(self) -> None:
        most = max(layer.num_bytes for layer in self.layers)
        self.places = [torch.empty(most, dtype=torch.uint8, device=self.device) for _ in range(2)]
        if torch.device(self.device).type == "cuda":
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def begin(self, index: int) -> None:
        """Have a layer read its weights on the device, and the next one copied there."""
        if index not in self.copies:
            self.copies.clear()  # of a pass that did not come to its end
            self._copy(index)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied[index])
        layer = self.layers[index]
        for tensor, copy in zip(layer.tensors, self.copies[index], strict=True):
            tensor.data = copy
        if index + 1 < len(self.layers):
            self._copy(index + 1)

    def end(self, index: int) -> None:
        """Have a layer's weights in host memory again; its place is free once all that was queued has run."""
        layer = self.layers[index]
        for tensor, host in zip(layer.tensors, layer.hosts, strict=True):
            tensor.data = host
        self.copies.pop(index, None)
        if self.stream is not None:
            self.freed[index % 2] = torch.cuda.current_stream(self.device).record_event()

    def _copy(self, index: int) -> None:
        place = self.places[index % 2]
        if self.stream is None:
            self.copies[index] = self.layers[index].copied_to(place)
            return
        with torch.cuda.stream(self.stream):
            if index % 2 in self.freed:
                self.stream.wait_event(self.freed[index % 2])
            self.copies[index] = self.layers[index].copied_to(place)
            self.copied[index] = self.stream.record_event()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
