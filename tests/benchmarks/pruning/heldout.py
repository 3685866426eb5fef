"""Loss and divergence on held-out text, row by row, where the vocabulary is too large to hold all logits at once.

A plain transformers loop in fp32: every row begins as a text begins, logits are made a chunk of positions at a time. Of
the original only what leaves its last norm is kept, and its logits are made again for every `KL_EVERY`-th position: the
head is most of the work.

Shapes: N rows, T positions, C positions of a chunk, H hidden channels, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compress.models.checkpoint import quiet

ROWS_AT_ONCE = 8
CHUNK_ELEMENTS = 2**25
"""Logits held at once: 128 MiB."""
KL_EVERY = 4


@dataclass(frozen=True)
class RowFigures:
    """Means over each row's tokens in nats: ``[N]`` each."""

    loss: list[float]
    kl: list[float]


def heldout_rows(text: Path, model: Path, num_rows: int, length: int) -> Tensor:
    """Return rows from places spread evenly over a text, each behind the tokenizer's BOS if it has one: ``[N, T]``."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    apart, own = len(ids) // num_rows, length - len(first)
    assert apart >= own, f"{text} is too short for {num_rows} rows of {length} tokens"
    return torch.tensor([first + ids[start : start + own] for start in range(0, apart * num_rows, apart)])


def load(folder: Path) -> PreTrainedModel:
    """Return a checkpoint in fp32."""
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    assert getattr(model.config, "final_logit_softcapping", None) is None, "logits are taken from the head"
    return model.eval()


class Heldout:
    """Held-out rows and what the original made of them.

    keep: a file for it, read where it is there; its name must tell the model and the rows.
    """

    @torch.inference_mode()
    def __init__(self, original: PreTrainedModel, rows_NT: Tensor, keep: Path | None = None) -> None:
        self._rows_NT = rows_NT
        self._head = original.get_output_embeddings()
        if keep is not None and keep.is_file():
            self._states_NTH, self._loss = torch.load(keep)
            return
        self._states_NTH = _last_states(original, rows_NT)
        self._loss = [_loss(self._head, *each) for each in zip(self._states_NTH, rows_NT, strict=True)]
        if keep is not None:
            torch.save((self._states_NTH, self._loss), keep.with_suffix(".new"))
            keep.with_suffix(".new").replace(keep)

    @torch.inference_mode()
    def excess(self, model: PreTrainedModel) -> RowFigures:
        """Return by how much a model's loss is above the original's, and KL(original ‖ model)."""
        head, states_NTH = model.get_output_embeddings(), _last_states(model, self._rows_NT)
        rows = zip(states_NTH, self._states_NTH, self._rows_NT, self._loss, strict=True)
        loss, kl = [], []
        for states_TH, original_TH, ids_T, original_loss in rows:
            loss.append(_loss(head, states_TH, ids_T) - original_loss)
            kl.append(self._divergence(head, states_TH[:-1:KL_EVERY], original_TH[:-1:KL_EVERY]))
        return RowFigures(loss, kl)

    def _divergence(self, head: nn.Linear, states_TH: Tensor, original_TH: Tensor) -> float:
        total = 0.0
        for own_CH, original_CH in zip(_chunks(head, states_TH), _chunks(head, original_TH), strict=True):
            log_q_CV, log_p_CV = head(own_CH).log_softmax(-1), self._head(original_CH).log_softmax(-1)
            total += float((log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(dtype=torch.float64))
        return total / len(states_TH)


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, rows_NT: Tensor) -> float:
    """Return nats a token."""
    head, states_NTH = model.get_output_embeddings(), _last_states(model, rows_NT)
    losses = [_loss(head, states_TH, ids_T) for states_TH, ids_T in zip(states_NTH, rows_NT, strict=True)]
    return sum(losses) / len(losses)


def _last_states(model: PreTrainedModel, rows_NT: Tensor) -> Tensor:
    """Return what the head reads: ``[N, T, H]``."""
    parts = rows_NT.split(ROWS_AT_ONCE)
    return torch.cat([model.base_model(input_ids=ids, use_cache=False).last_hidden_state for ids in parts])


def _loss(head: nn.Linear, states_TH: Tensor, ids_T: Tensor) -> float:
    """Return nats a token of one row."""
    total, next_T = 0.0, ids_T[1:]
    for states_CH, next_C in zip(_chunks(head, states_TH[:-1]), _chunks(head, next_T), strict=True):
        logits_CV = head(states_CH)
        right_C = logits_CV.gather(1, next_C[:, None])[:, 0]
        total += float((logits_CV.logsumexp(-1) - right_C).sum(dtype=torch.float64))
    return total / len(next_T)


def _chunks(head: nn.Linear, along_T: Tensor) -> Iterator[Tensor]:
    yield from along_T.split(max(1, CHUNK_ELEMENTS // head.out_features))
