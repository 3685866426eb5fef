"""Calibration text running through a model, one layer at a time, watched by whoever scores or refits it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.tokens import PackedTokens, order
from compress.environment import available_memory_bytes
from compress.models.device import default_device
from compress.models.family import Dim
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import Layout
from compress.models.spec import read_spec
from compress.plugins import Context
from compress.prune.scratch import Scratch
from compress.prune.settings import Memory

BATCH_TOKENS = 4096
"""Tokens run at once (one sequence at least): bounds the activations' memory."""

RESIDENT_SHARE = 0.5
"""With ``memory: auto``, a model stays in memory when it takes at most this share of what is available."""

Record = Callable[[str, tuple[Any, ...], Tensor], None]
"""Gets a module's name below the layer, its inputs and its output, each time it has run."""


class Calibration:
    """A model, the text, and the hidden states between two layers."""

    def __init__(
        self,
        model: LayerwiseModel,
        batches: Sequence[Tensor],
        scratch: Scratch,
        seed: int = 0,
        layers_left: int = 1,
        report: Callable[[float, float], None] = lambda done, total: None,
    ) -> None:
        """layers_left: how many layers are to stay; a metric need not tell those apart."""
        self.model, self.batches, self.scratch, self.seed = model, batches, scratch, seed
        self.layers_left = layers_left
        self.layout: Layout = model.layout
        self.num_tokens = sum(ids.numel() for ids in batches)
        self.states = scratch.states("states", batches, self.layout.hidden, model.dtype)
        self.report = report

    def layers(self) -> Iterator["LayerPass"]:
        """Yield the layers in order; each must be run once, which carries the text past it."""
        self.embed()
        total = self.num_tokens * self.layout.num_layers
        for number in range(self.layout.num_layers):
            with self.model.layer(number) as module:
                yield LayerPass(self, number, module)
            self.report((number + 1) * self.num_tokens, total)

    def embed(self) -> None:
        """Start anew: the states are those that enter the first layer."""
        for ids, state in zip(self.batches, self.states, strict=True):
            state.copy_(self.model.embed(ids))

    def tail(self, modules: Sequence[str], record: Record) -> None:
        """Run what follows the layers, watching modules by their live names in the model."""
        with watching(self.model.model, modules, record):
            for ids, state in zip(self.batches, self.states, strict=True):
                self.model.logits(ids, state)


class LayerPass:
    """One layer, its weights there, before the text has passed it."""

    def __init__(self, calibration: Calibration, number: int, module: nn.Module) -> None:
        self._calibration, self.number, self.module = calibration, number, module
        self.prefix = calibration.layout.layers[number] + "."

    def axes(self, stored: str) -> tuple[Dim, ...]:
        """Return the axes of a stored tensor."""
        return self._calibration.layout.tensors[stored]

    def inside(self, stored_modules: Sequence[str]) -> list[str]:
        """Return those of the stored modules' names that are in this layer, by their names below it."""
        return [name.removeprefix(self.prefix) for name in stored_modules if name.startswith(self.prefix)]

    def run(
        self, modules: Sequence[str], record: Record, around: Callable[[Tensor, Tensor], None] | None = None
    ) -> None:
        """Carry the text past the layer. `around` gets the states before and after each batch, ``[B, T, H]``."""
        calibration = self._calibration
        with watching(self.module, modules, record):
            for state in calibration.states:
                before = state.to(calibration.model.device)  # in files it is on the CPU
                after = calibration.model.run(self.number, before)
                if around is not None:
                    around(before, after)
                state.copy_(after)


def open_calibration(
    folder: Path, layout: Layout, tokens: int, memory: Memory, context: Context, layers_left: int = 1
) -> Calibration:
    """Return the checkpoint and a seeded choice of calibration sequences, at most `tokens` tokens together.

    The sequences are those of ``context.inputs["calibration"]``. Progress is reported to the context, and its wish to
    stop is obeyed.
    """
    device = default_device()
    resident = is_resident(folder, memory, device)
    model = LayerwiseModel.open(folder, layout, device=device, resident=resident)

    def report(done: float, total: float) -> None:
        if context.stopping:
            context.stop()
        context.progress(done, total, "layer tokens")

    scratch = Scratch(None if resident else context.partial, device)
    batches = read_batches(context, tokens, device)
    return Calibration(model, batches, scratch, context.seed, layers_left, report)


def read_batches(context: Context, tokens: int, device: str) -> list[Tensor]:
    """Return the chosen calibration sequences in batches of token ids ``[B, T]`` on the device."""
    packed = PackedTokens.open(context.inputs["calibration"].path)
    wanted = max(1, tokens // packed.sequence_length)
    chosen = order(packed.num_sequences, context.seed, epoch=0)[:wanted].tolist()
    size = max(1, BATCH_TOKENS // packed.sequence_length)
    return [packed.batch(chosen[start : start + size]).to(device) for start in range(0, len(chosen), size)]


def is_resident(folder: Path, memory: Memory, device: str) -> bool:
    """Return whether all layers are to be kept in memory at once."""
    if memory != "auto":
        return memory == "ram"
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else available_memory_bytes()
    return read_spec(folder).weight_bytes <= RESIDENT_SHARE * free


@contextmanager
def watching(module: nn.Module, names: Sequence[str], record: Record) -> Iterator[None]:
    """Call `record` each time one of the named submodules has run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, inputs, output: record(name, inputs, output)

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
