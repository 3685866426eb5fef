"""AdamW as language models are trained with: decay on matrices only, one length for the whole gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from compress.train.settings import TrainingSettings


def adamw(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """Return the optimizer of a model's trainable parameters (Loshchilov & Hutter 2019), fused."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


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
