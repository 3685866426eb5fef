"""AdamW as language models are trained with: decay on matrices only, one length for the whole gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from compress.train.settings import TrainingSettings


def adamw(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters (Loshchilov & Hutter 2019), its moments as asked."""
    kept: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    if settings.optimizer == "adamw_8bit":
        # bitsandbytes takes seconds to import: only where it is asked for.
        from compress.train.moments_8bit import AdamW8bit

        return AdamW8bit(_groups(model, settings, embeddings={"optim_bits": 32}), **kept)
    if settings.optimizer == "adamw_bf16":
        from compress.train.moments_bf16 import AdamWBf16

        return AdamWBf16(_groups(model, settings), **kept)
    return torch.optim.AdamW(_groups(model, settings), fused=True, **kept)


def _groups(
    model: nn.Module, settings: TrainingSettings, embeddings: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return matrices, which decay, and the rest, which does not; embeddings by themselves where they differ."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    decays = {"weight_decay": settings.weight_decay}
    apart = _embeddings(model) if embeddings else set()
    groups: list[dict[str, Any]] = [{"params": [p for p in matrices if id(p) not in apart], **decays}]
    groups.append({"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0})
    if embeddings and (looked_up := [p for p in matrices if id(p) in apart]):
        groups.append({"params": looked_up, **decays, **embeddings})
    return groups


def _embeddings(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def average_and_clip(parameters: Iterable[nn.Parameter], num_tokens: float, max_norm: float) -> float:
    """Turn gradients of a sum over tokens into those of the mean, no longer than `max_norm`, in place.

    Returns the mean gradient's length before clipping.
    """
    grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    total: Any = nn.utils.get_total_norm(grads)
    if isinstance(total, DTensor):  # each process has seen its part
        total = total.full_tensor()
    norm = float(total) / num_tokens
    torch._foreach_mul_(grads, min(1.0, max_norm / (norm + 1e-6)) / num_tokens)
    return norm
