"""A model run one layer at a time, so that only one layer's weights need memory.

transformers builds the model with parameters that take no memory. Everything outside the layers (embeddings, last
norm, head) is mapped from the checkpoint; a layer's weights are mapped while it runs and let go afterwards, or all
are kept (`resident`). Both run the same operations in the same order: their results are bit for bit the same.

How a layer is called (masks, rotary tables, windows) is not written down anywhere here: the model's own ``forward``
runs once per batch shape with layers that only note their arguments. In the same way the model's own tail makes
logits of a last hidden state. So every architecture of transformers runs as transformers runs it.

Shapes: B sequences, T tokens, H hidden channels, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from compress.models.checkpoint import DTYPES, auto_class, quiet
from compress.models.device import fast_dtype
from compress.models.layout import Layout
from compress.models.shards import read_shards
from compress.models.spec import read_spec, stored_dtype

Weights = dict[str, Tensor]


class Stored(Protocol):
    """Gives the tensor stored under a name."""

    def __getitem__(self, name: str, /) -> Tensor: ...


class LayerwiseModel:
    """A model run layer by layer on a device, its stored tensors looked up by name when they are needed."""

    def __init__(
        self,
        stored: Stored,
        layout: Layout,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        resident: bool = True,
    ) -> None:
        self.layout, self.dtype, self.device, self.resident = layout, dtype, device, resident
        self.stored = stored
        self.model = empty_model(layout.config)
        if layout.num_experts and dtype == torch.float64:
            self.model.set_experts_implementation("eager")  # the fused one has no fp64
        self._layers = [self.model.get_submodule(name) for name in layout.layers]
        self._calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self._recording: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._entered: Tensor | None = None
        self._leaving: Tensor | None = None
        self._load_outside()
        for number, layer in enumerate(self._layers):
            layer.forward = partial(self._stand_in, number)
            if resident:
                self._load(number)

    @classmethod
    def open(
        cls, folder: Path, layout: Layout, *, device: str = "cpu", resident: bool = True
    ) -> "LayerwiseModel":
        """Return the model of a checkpoint folder, in the dtype it is stored in, or fp32 where that is slow."""
        dtype = fast_dtype(DTYPES[stored_dtype(read_spec(folder))], torch.device(device).type)
        return cls(StoredWeights(folder), layout, dtype, device=device, resident=resident)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @contextmanager
    def layer(self, number: int) -> Iterator[nn.Module]:
        """Give a layer with its weights, its submodules under the family's names below the layer."""
        if not self.resident:
            self._load(number)
        try:
            yield self._layers[number]
        finally:
            if not self.resident:
                unload(self._layers[number])

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the hidden state that enters the first layer: ``[B, T, H]``."""
        self._whole(ids_BT, None)
        assert self._entered is not None
        return self._entered

    def run(self, number: int, hidden_BTH: Tensor) -> Tensor:
        """Return the hidden state after a layer, which must be loaded; `embed` saw ids of this shape before."""
        args, kwargs = self._calls[tuple(hidden_BTH.shape[:2])][number]
        layer = self._layers[number]
        output = type(layer).forward(layer, hidden_BTH.to(self.device), *args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def logits(self, ids_BT: Tensor, hidden_BTH: Tensor) -> Tensor:
        """Return what the model's tail makes of the last layer's output: ``[B, T, V]``."""
        output: Tensor = self._whole(ids_BT, hidden_BTH.to(self.device))
        return output

    def assign(self, number: int, weights: Weights) -> None:
        """Give a layer these weights, by their stored names in this model."""
        assign(self._layers[number], self.layout, number, weights, self.device, self.dtype)

    def weights(self, number: int) -> Weights:
        """Return the stored tensors of a layer, by their stored names, mapped from the checkpoint."""
        return {
            name: self.stored[name] for name in self.layout.tensors if self.layout.layer_of(name) == number
        }

    def _load(self, number: int) -> None:
        self.assign(number, self.weights(number))

    def _load_outside(self) -> None:
        outside = {
            self.layout.live_tensor(name): self.stored[name].to(self.device, self.dtype)
            for name in self.layout.tensors
            if self.layout.layer_of(name) is None
        }
        self.model.load_state_dict(outside, strict=False, assign=True)
        self.model.tie_weights()
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        bare = [n for n, p in self.model.named_parameters() if p.is_meta and id(p) not in inside]
        assert not bare, f"the family's table does not name {bare}"

    def _whole(self, ids_BT: Tensor, leaving_BTH: Tensor | None) -> Any:
        """Run the model's own forward around the layers; what leaves the last one may be given."""
        self._recording, self._leaving = [], leaving_BTH
        whole = self.model if leaving_BTH is not None else self.model.base_model
        keywords = {} if self.model.config.model_type in ("distilbert",) else {"use_cache": False}
        output = whole(input_ids=ids_BT.to(self.device), **keywords)
        self._calls[tuple(ids_BT.shape)] = self._recording
        return output.logits if leaving_BTH is not None else None

    def _stand_in(self, number: int, hidden_BTH: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if number == 0:
            self._entered = hidden_BTH
        self._recording.append((args, kwargs))
        is_last = number == self.num_layers - 1
        return self._leaving if is_last and self._leaving is not None else hidden_BTH


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, by name; on the CPU they are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self._where = {
            name: folder / file for file, tensors in read_shards(folder).items() for name in tensors
        }
        self._files = ExitStack()
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        path = self._where[name]
        if path not in self._open:
            self._open[path] = self._files.enter_context(safe_open(path, framework="pt"))
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor


def empty_model(config: dict[str, Any]) -> PreTrainedModel:
    """Return transformers' model of a configuration, in eval mode, its parameters without memory."""
    with quiet(), init_empty_weights(include_buffers=False):
        settings = AutoConfig.for_model(**config)
        model = auto_class(config).from_config(settings)
    return model.eval().requires_grad_(False)


def assign(
    layer: nn.Module, layout: Layout, number: int, weights: Weights, device: str, dtype: torch.dtype
) -> None:
    """Give a live layer these weights, by their stored names in a model of that layout."""
    prefix = layout.layers[number] + "."
    state = {name.removeprefix(prefix): w.to(device, dtype) for name, w in weights.items()}
    layer.load_state_dict(fused_experts(state), strict=True, assign=True)


def fused_experts(state: Weights) -> Weights:
    """Return a layer's state with its experts as the live model has them.

    Stored one by one (``experts.3.gate_proj.weight``), live in one tensor for all: ``experts.gate_up_proj``
    ``[E, 2F, H]`` and ``experts.down_proj`` ``[E, H, F]``.
    """
    stacks: dict[str, list[Tensor]] = {}
    live: Weights = {}
    for name, weight in state.items():
        before, found, after = name.partition("experts.")
        if not found:
            live[name] = weight
        elif after.partition(".")[0].isdigit():
            stacks.setdefault(before + "experts." + after.partition(".")[2], []).append(weight)
    for name in [name for name in stacks if name.endswith("gate_proj.weight")]:
        gates, ups = stacks.pop(name), stacks.pop(name.replace("gate_proj", "up_proj"))
        fused = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
        live[name.replace("gate_proj.weight", "gate_up_proj")] = torch.stack(fused)
    return live | {name.removesuffix(".weight"): torch.stack(parts) for name, parts in stacks.items()}


def separate_experts(live: Weights) -> Weights:
    """Return the tensors of a live layer, its experts one by one as they are stored: `fused_experts` undone."""
    state: Weights = {}
    for name, tensor in live.items():
        before, found, leaf = name.rpartition("experts.")
        if not found:
            state[name] = tensor
            continue
        for number, part in enumerate(tensor):
            expert = f"{before}experts.{number}."
            if leaf == "gate_up_proj":
                state[f"{expert}gate_proj.weight"], state[f"{expert}up_proj.weight"] = part.chunk(2)
            else:
                state[f"{expert}{leaf}.weight"] = part
    return state


def unload(layer: nn.Module) -> None:
    """Let go of a layer's weights; it keeps their shapes."""
    for module in layer.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
