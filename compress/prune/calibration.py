"""Running calibration text through a model and watching what its modules see."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens, order
from compress.errors import StepFailed
from compress.models.checkpoint import load_model
from compress.models.device import default_device
from compress.models.layout import Layout
from compress.plugins import Context
from compress.prune.interface import Importance, Unit

BATCH_TOKENS = 4096
"""Tokens run at once (one sequence at least): bounds the activations' memory."""

Observer = Callable[[str, Tensor, Tensor], None]
"""Gets a module's name, its input and its output, both ``[B, T, C]``."""


@torch.inference_mode()
def score_units(
    model_folder: Path, layout: Layout, metric: Importance, samples: int, context: Context
) -> dict[Unit, Tensor]:
    """Return the metric's scores on a seeded choice of calibration sequences, fp64 on the CPU.

    Raises `StepFailed` when a score is not finite.
    """
    device = default_device()
    model = load_model(model_folder, device=device)
    tokens = PackedTokens.open(context.inputs["calibration"].path)
    scores = metric.score(model, layout, _batches(tokens, samples, device, context))
    for unit, values in scores.items():
        if not bool(values.isfinite().all()):
            raise StepFailed(
                f"the importance of {unit} is not finite: the checkpoint holds NaN or infinite weights"
            )
    return {unit: values.cpu() for unit, values in scores.items()}


@contextmanager
def observing(model: PreTrainedModel, names: Iterable[str], record: Observer) -> Iterator[None]:
    """Call `record` each time one of the named modules has run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: record(name, inputs[0], output)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(tokens: PackedTokens, samples: int, device: str, context: Context) -> Iterator[Tensor]:
    chosen = order(tokens.num_sequences, context.seed, epoch=0)[:samples].tolist()
    size = max(1, BATCH_TOKENS // tokens.sequence_length)
    total = len(chosen) * tokens.sequence_length
    for start in range(0, len(chosen), size):
        if context.stopping:
            context.stop()
        yield tokens.batch(chosen[start : start + size]).to(device)
        context.progress(min(start + size, len(chosen)) * tokens.sequence_length, total, "tokens")
