"""Whether an exported graph is still its parent: both read the same random tokens, and their logits are compared.

Left-padded and unpadded sequences, in one go, in pieces, and token by token on a cache.
"""

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from compress.backends.huggingface import HuggingFaceBackend
from compress.backends.interface import Backend, OpenOptions
from compress.backends.onnxruntime import open as open_onnx
from compress.errors import StepFailed
from compress.models.checkpoint import load_model
from compress.records import Artifact, JsonValue

EXACT = 1e-3
"""Largest difference of a logit in fp32."""
ROUNDED = 0.1
"""Largest mean difference, as a share of the logits' spread, where activations or weights were rounded. Rounding
stays well below; a wrong layer, position or scale exceeds it many times."""

LENGTH, PIECE, DECODED = 24, 10, 2


def check(parent: Artifact, folder: Path, exact: bool, seed: int) -> dict[str, JsonValue]:
    """Return how far the logits are from the parent's computed in fp32. Raises `StepFailed` beyond the tolerance."""
    reference = HuggingFaceBackend(load_model(parent.path, dtype=torch.float32))
    exported = open_onnx(Artifact(key="", kind="onnx", path=folder), OpenOptions())
    ids_BT, mask_BT = _batch(reference, reference.model.config.bos_token_id, seed)
    expected_NV, actual_NV = (_logits(backend, ids_BT, mask_BT) for backend in (reference, exported))
    difference_NV = (actual_NV - expected_NV).abs()
    largest, mean, spread = difference_NV.max().item(), difference_NV.mean().item(), expected_NV.std().item()
    same_top = (actual_NV.argmax(-1) == expected_NV.argmax(-1)).float().mean().item()
    within = largest <= EXACT * max(1.0, spread) if exact else mean <= ROUNDED * spread
    if not within:
        raise StepFailed(
            f"the exported graph does not compute what its parent does: logits differ by up to {largest:.3g}, "
            f"{mean:.3g} on average, where they spread by {spread:.3g}"
        )
    return {
        "max_logit_difference": largest,
        "mean_logit_difference": mean,
        "logit_spread": spread,
        "same_top_token_rate": same_top,
    }


def _batch(model: Backend, start: object, seed: int) -> tuple[Tensor, Tensor]:
    """Return three sequences of random tokens, two of them left-padded, that begin as texts begin.

    Without its first token a model that depends on it (Gemma) is so unsure that rounding alone moves its logits by a
    tenth of their spread.
    """
    length = min(LENGTH, model.num_positions)
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(model.vocabulary, (3, length), generator=generator)
    padding_B1 = torch.tensor([[0], [length // 4], [3 * length // 4]])
    if isinstance(start, int) and 0 <= start < model.vocabulary:
        ids_BT.scatter_(1, padding_B1, start)
    return ids_BT, (torch.arange(length) >= padding_B1).long()


def _logits(model: Backend, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the logits ``[N, V]`` of every real token read in pieces, then of the last ones decoded again."""
    logits_BTV = torch.cat(list(model.logits_chunks(ids_BT, mask_BT, PIECE)), dim=1)
    start = ids_BT.shape[1] - DECODED
    last_BV, cache = model.prefill(ids_BT[:, :start], mask_BT[:, :start])
    decoded = [last_BV]
    for t in range(start, ids_BT.shape[1]):
        last_BV, cache = model.decode(ids_BT[:, t : t + 1], mask_BT[:, : t + 1], cache)
        decoded.append(last_BV)
    return torch.cat(list(chain([logits_BTV[mask_BT.bool()]], decoded)))
