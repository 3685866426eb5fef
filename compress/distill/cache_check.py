"""How far learning from a cache is from learning from the teacher itself, on a few rows before the first step."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.data.tokens import PackedTokens
from compress.records import JsonValue

CHECK = "cache_check.json"
MOST_ROWS, MOST_TOKENS = 8, 4_096


def checked_batch(data: PackedTokens, rows: list[int], attend_across_documents: bool) -> Batch:
    """Return a few of the rows that are cached, spread evenly over them."""
    num = max(1, min(MOST_ROWS, MOST_TOKENS // data.sequence_length, len(rows)))
    batch = data.learning_batch([rows[place * len(rows) // num] for place in range(num)])
    return replace(batch, positions=None) if attend_across_documents else batch


def kept(folder: Path) -> dict[str, JsonValue] | None:
    """Return the differences found at an earlier start of the work in `folder`."""
    path = folder / CHECK
    found: dict[str, JsonValue] | None = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    )
    return found


def keep(folder: Path, facts: Mapping[str, JsonValue]) -> None:
    """Write the differences for later starts."""
    temporary = (folder / CHECK).with_suffix(".new")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    temporary.replace(folder / CHECK)


def differences(
    student: PreTrainedModel, whole: nn.Module, cached: nn.Module, batch: Batch
) -> dict[str, JsonValue]:
    """Return how loss and gradient of two objectives around `student` differ.

    ``cache_loss_difference``: cached minus whole, in nats a token. ``cache_gradient_error``: the length of the
    difference as a share of the whole gradient, over all weights; with sampled tails it falls with the root of the
    number of tokens, of which there are ``cache_checked_tokens``. ``None`` where there is no gradient to share.
    """
    whole_loss, num_tokens, whole_gradient = _loss_and_gradient(student, whole, batch)
    cached_loss, _, cached_gradient = _loss_and_gradient(student, cached, batch)
    pairs = zip(whole_gradient, cached_gradient, strict=True)
    distance = sum(float((ours - theirs).square().sum()) for theirs, ours in pairs) ** 0.5
    length = sum(float(gradient.square().sum()) for gradient in whole_gradient) ** 0.5
    return {
        "cache_loss_difference": cached_loss - whole_loss,
        "cache_gradient_error": distance / length if length else None,
        "cache_checked_tokens": num_tokens,
    }


def _loss_and_gradient(
    student: PreTrainedModel, objective: nn.Module, batch: Batch
) -> tuple[float, int, list[Tensor]]:
    """Return the mean loss, the number of tokens, and the summed gradient of every weight, in fp32."""
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    gradients = [torch.zeros_like(weight) for weight in weights]
    total, num_tokens = 0.0, 0
    for row in batch.split(1):
        loss, count = objective(row)
        if not count:
            continue
        for gradient, part in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
            gradient += part
        total, num_tokens = total + float(loss.detach()), num_tokens + count
    return total / max(1, num_tokens), num_tokens, gradients
