"""A language model's output layer, and what it reads: hidden states before every target.

Shapes: B sequences, T positions, N targets, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import InputError
from compress.train.attention import as_mask, is_told_documents

APART = 1e-3
"""How much of a hidden state may come of the text before, by rounding: where experts share their tokens."""


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return what the head sees before every target: ``[N, D]``, beside `Batch.targets`.

    Attention stays inside each document: `compress.train.attention` is told where they begin, and for other attention
    transformers makes a mask of positions that start anew.
    """
    where = {} if batch.positions is None else {"position_ids": batch.positions}
    if is_told_documents(model):
        where = {"attention_mask": as_mask(batch.documents), "position_ids": _positions(batch)}
    hidden_BTD: Tensor = model.base_model(input_ids=batch.ids, use_cache=False, **where).last_hidden_state
    return batch.before_targets(hidden_BTD)


@torch.no_grad()
def check_documents_apart(model: PreTrainedModel) -> None:
    """Raise `InputError` for a model in which a text changes what comes of the next one of its row.

    Some take no positions (ALiBi, and attention of their own), others carry a state through the whole row.
    """
    first_B2 = torch.tensor([[0, 1], [2, 3]], device=model.device)
    ids_BT = torch.cat([first_B2, first_B2[:1].expand(2, -1)], 1) % model.config.vocab_size
    training = model.training
    model.eval()
    hidden_ND = hidden_states(model, Batch(ids_BT, torch.tensor([[0, 1, 0, 1]] * 2, device=model.device)))
    model.train(training)
    one, other = hidden_ND[1::2].float()  # before the second target of each row, in its second text
    if not torch.linalg.vector_norm(one - other) <= APART * torch.linalg.vector_norm(one):
        raise InputError(
            f"a model of type '{model.config.model_type}' does not read the texts of a row apart, but one after the "
            "other as a single text. Allowed for it: `attend_across_documents: true`, or rows of one text each"
        )


def _positions(batch: Batch) -> Tensor:
    """Return each token's position. A model that found its own would look at the mask, or wait for a GPU."""
    if batch.positions is not None:
        return batch.positions
    return torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]


@dataclass(frozen=True)
class OutputHead:
    """How a model makes logits of hidden states: ``cap(scale · W h + b)``."""

    scale: float
    """Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`."""
    softcap: float | None
    """Gemma 2 bends: ``c · tanh(x / c)``."""

    def scaled(self, hidden_ND: Tensor) -> Tensor:
        """Return hidden states times the scale, so that the matrix alone makes logits of them."""
        return hidden_ND if self.scale == 1 else hidden_ND * self.scale


def output_head(model: PreTrainedModel) -> OutputHead:
    """Return how the model makes its logits. Raises `InputError` when it is none of the known ways."""
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    head = OutputHead(scale, getattr(config, "final_logit_softcapping", None))
    # Without weights nothing can be computed: the process of a team that has them looks for all.
    if model.device.type != "meta" and not _makes_its_logits(head, model):
        raise InputError(
            f"a model of type '{config.model_type}' computes its logits by more than one linear layer; "
            "it cannot be trained here"
        )
    return head


def output_matrix(model: PreTrainedModel, num_ids: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the output layer's weight ``[V, D]`` and bias ``[V]``: of all ids, or of the first `num_ids`."""
    layer: Any = model.get_output_embeddings()
    if num_ids is None or num_ids >= len(layer.weight):
        return layer.weight, layer.bias
    return layer.weight[:num_ids], None if layer.bias is None else layer.bias[:num_ids]


@torch.no_grad()
def _makes_its_logits(head: OutputHead, model: PreTrainedModel) -> bool:
    """Compare with the model's own logits of four tokens."""
    layer: Any = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or (head.scale != 1 and layer.bias is not None):
        return False
    ids_BT = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    training = model.training
    model.eval()
    logits_BTV = layer(head.scaled(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state))
    if head.softcap is not None:
        logits_BTV = head.softcap * torch.tanh(logits_BTV / head.softcap)
    theirs_BTV = model(input_ids=ids_BT, use_cache=False).logits
    model.train(training)
    # A scale that is no power of two rounds the hidden states once more than the model does.
    most = max(1e-3, 4 * torch.finfo(theirs_BTV.dtype).eps)
    difference = torch.linalg.vector_norm((logits_BTV - theirs_BTV).float())
    return bool(difference <= most * torch.linalg.vector_norm(theirs_BTV.float()))
