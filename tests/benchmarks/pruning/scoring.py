"""What a pruned model is judged by: its loss on held-out text and its divergence from the teacher, exact.

Shapes: N rows, T positions, V vocabulary, D documents of `ROWS_PER_DOCUMENT` rows each.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, nll_loss
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens, order

BATCH = 32
ROWS_PER_DOCUMENT = 4


@dataclass(frozen=True)
class Figures:
    """Means over a document's tokens in nats: ``[D]`` each."""

    loss: list[float]
    kl: list[float]


def heldout_rows(folder: Path, num_documents: int) -> Tensor:
    """Return the rows of the first held-out documents: int64 ``[D · ROWS_PER_DOCUMENT, T]``."""
    return PackedTokens.open(folder).rows(0, num_documents * ROWS_PER_DOCUMENT)


def calibration_rows(folder: Path, seed: int, count: int) -> Tensor:
    """Return a seeded choice of calibration rows, the one `compress` makes with that seed: int64 ``[count, T]``."""
    tokens = PackedTokens.open(folder)
    return tokens.batch(order(tokens.num_sequences, seed, epoch=0)[:count].tolist())


@torch.inference_mode()
def predictions(model: PreTrainedModel, rows_NT: Tensor) -> Tensor:
    """Return the log-probabilities of every next token, fp32: ``[N, T − 1, V]``."""
    return torch.cat([_log_probabilities(model, ids_BT) for ids_BT in rows_NT.split(BATCH)])


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, rows_NT: Tensor) -> float:
    """Return nats a token."""
    total = sum(
        float(_losses(_log_probabilities(model, ids_BT), ids_BT).sum(dtype=torch.float64))
        for ids_BT in rows_NT.split(BATCH)
    )
    return total / (rows_NT.shape[0] * (rows_NT.shape[1] - 1))


@torch.inference_mode()
def figures(model: PreTrainedModel, teacher_NTV: Tensor, rows_NT: Tensor) -> Figures:
    """Return loss and KL(teacher ‖ model) of every document, beside the teacher's `predictions`."""
    losses, divergences = [], []
    for ids_BT, teacher_BTV in zip(rows_NT.split(BATCH), teacher_NTV.split(BATCH), strict=True):
        model_BTV = _log_probabilities(model, ids_BT)
        losses.append(_losses(model_BTV, ids_BT))
        divergences.append(kl_div(model_BTV, teacher_BTV, reduction="none", log_target=True).sum(-1))
    return Figures(_by_document(losses), _by_document(divergences))


def _log_probabilities(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return log_softmax(logits_BTV.float(), dim=-1)


def _losses(log_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    return nll_loss(log_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")


def _by_document(parts: list[Tensor]) -> list[float]:
    values: list[float] = torch.cat(parts).double().reshape(-1, _per_document(parts)).mean(1).tolist()
    return values


def _per_document(parts: list[Tensor]) -> int:
    return ROWS_PER_DOCUMENT * parts[0].shape[1]
