"""The output head and a loss over it, a tile of tokens at a time.

Logits of a whole batch are the largest thing in training a language model. Here a tile's logits live only
until their gradient has been folded into those of the hidden states and the head, which therefore are
computed in the forward pass: one projection, no ``[tokens, vocabulary]`` tensor beyond a tile.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import InputError

TileLoss = Callable[[Tensor, slice], Tensor]
"""Logits ``[n, V]`` of the tokens in a slice → their losses ``[n]``."""
TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}


class Head(Protocol):
    """A linear output layer."""

    weight: Tensor
    bias: Tensor | None


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return what the head sees before every target: ``[N, D]``, beside `Batch.targets`.

    Positions that start anew keep attention inside each document: transformers reads packed documents from them.
    """
    positions = {} if batch.positions is None else {"position_ids": batch.positions}
    hidden_BTD: Tensor = model.base_model(input_ids=batch.ids, use_cache=False, **positions).last_hidden_state
    return batch.before_targets(hidden_BTD)


def plain_head(model: PreTrainedModel) -> Head:
    """Return the model's output layer. Raises `InputError` when its logits are more than that."""
    head: Any = model.get_output_embeddings()
    ids_BT = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    training = model.training
    model.eval()
    with torch.no_grad():
        states_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        plain = isinstance(head, nn.Linear) and torch.allclose(
            head(states_BTD), model(input_ids=ids_BT, use_cache=False).logits, rtol=1e-3, atol=1e-4
        )
    model.train(training)
    if not plain:
        raise InputError(
            f"a model of type '{model.config.model_type}' computes its logits by more than one linear layer; "
            "it cannot be trained here"
        )
    return head  # type: ignore[no-any-return]


def project(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Return logits ``[N, V]`` in the dtype of `weight_VD`, fp32 for fp32: never rounded to bf16.

    Under autocast the products are still fast (bf16 on a processor, TF32 on CUDA), summed and kept in fp32.
    Rounded logits would make the gradient of a divergence between close models wrong by several per cent.
    """
    with _fast_products(hidden_ND.device.type):
        return functional.linear(hidden_ND.to(weight_VD.dtype), weight_VD, bias_V)


def tiled_loss(hidden_ND: Tensor, head: Head, loss: TileLoss) -> Tensor:
    """Return the sum of `loss` over all tokens, differentiable in the hidden states and the head."""
    return _TiledLoss.apply(hidden_ND, head.weight, head.bias, loss)  # type: ignore[no-any-return, no-untyped-call]


def tile_tokens(vocabulary: int, device_type: str) -> int:
    """Return how many tokens' fp32 logits fill a tile; at least 16, so that products stay matrices."""
    return max(16, TILE_BYTES["cpu" if device_type == "cpu" else "cuda"] // (4 * vocabulary))


class _TiledLoss(torch.autograd.Function):
    """The head's product, the loss and both gradients, in one pass over the tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, loss: TileLoss
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        grad_ND = torch.empty_like(hidden_ND) if learns else None
        grad_VD = torch.zeros_like(weight_VD) if learns else None
        grad_V = torch.zeros_like(bias_V) if learns and bias_V is not None else None
        total = hidden_ND.new_zeros((), dtype=weight_VD.dtype)
        step = tile_tokens(len(weight_VD), hidden_ND.device.type)
        for start in range(0, len(hidden_ND), step):
            rows = slice(start, min(start + step, len(hidden_ND)))
            tile_ND = hidden_ND[rows].to(weight_VD.dtype)
            logits_NV = project(tile_ND, weight_VD, bias_V)
            total_tile, slope_NV = _loss_and_slope(logits_NV, rows, loss, learns)
            total += total_tile
            if slope_NV is None or grad_ND is None or grad_VD is None:
                continue
            with _fast_products(hidden_ND.device.type):
                grad_ND[rows] = slope_NV @ weight_VD
                grad_VD.addmm_(slope_NV.T, tile_ND)
            if grad_V is not None:
                grad_V += slope_NV.sum(0)
        ctx.grads = grad_ND, grad_VD, grad_V
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "the gradients of a tiled loss are given once"
        return *(None if grad is None else grad.mul_(slope) for grad in grads), None


def _loss_and_slope(
    logits_NV: Tensor, rows: slice, loss: TileLoss, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """Return a tile's summed loss and its gradient with respect to the logits."""
    with torch.set_grad_enabled(learns):
        total = loss(logits_NV.requires_grad_(learns), rows).sum()
    slope_NV = torch.autograd.grad(total, logits_NV)[0] if learns else None
    return total.detach(), slope_NV


@contextmanager
def _fast_products(device_type: str) -> Iterator[None]:
    """Under autocast: leave it, and let fp32 products use bf16 (CPU) or TF32 (CUDA) inputs with fp32 sums."""
    backends: Any = torch.backends
    backend = backends.mkldnn.matmul if device_type == "cpu" else backends.cuda.matmul
    before = backend.fp32_precision
    if torch.is_autocast_enabled(device_type):
        backend.fp32_precision = "bf16" if device_type == "cpu" else "tf32"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        backend.fp32_precision = before
