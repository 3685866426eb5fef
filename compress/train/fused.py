"""The output head and a loss over it in one operation, never holding the logits of all tokens.

Logits are the largest thing in training a language model. Here a group of tokens has whole rows of them, they are
judged in tiles that stay in the processor's cache, and each tile's gradient takes the place of its logits. From these
follow the gradients of hidden states and head, in the forward pass: one projection, and no more memory than a group's.

Shapes: N tokens, g of a group, n of a tile, D hidden size, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from compress.train.distribution import Distribution
from compress.train.projection import Projection

Judge = Callable[[Distribution, slice], tuple[Tensor, Tensor]]
"""The student's distributions of a tile, and which tokens they are of → losses ``[n]``, gradients in the logits
``[n, V]``."""


class GroupJudge(ABC):
    """What judges all rows of a group at once: a kernel needs no tiles."""

    @abstractmethod
    def judge_group(self, product_gV: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses ``[g]`` and gradients in the product ``[g, V]``, the latter in the dtype of products' inputs.

        It may overwrite the product, and return it.
        """


Criterion = Callable[[Projection, slice], Judge | GroupJudge]
"""Told the student's output layer and which of its tokens come next as a group: the time to project a teacher's."""

GROUP_BYTES = {"cpu": 192 * 2**20, "cuda": 512 * 2**20}
TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}
"""Of a group's product, and of a tile's fp32 logits; a tile of a processor's must be small beside its caches.

On a GPU a group, its teacher's, its gradient and the tensors of a tile are 2 GB at most, beside the output matrix's
gradient: 1 GB in bf16 for 128,256 ids of 4,096 numbers.
"""
CUDA_ROWS = 128
"""A GPU's matrix products are computed in blocks of as many rows: groups fill theirs."""
WEIGHT_ROWS = 16_384
"""Of the output matrix's gradient, computed at once where it is summed in another dtype."""


def fused_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    criterion: Criterion,
    softcap: float | None = None,
) -> Tensor:
    """Return the sum of the criterion's losses over all tokens, differentiable in hidden states and output layer.

    The sum is fp32, or fp64 for a weight in fp64. Under autocast products are bf16 (`compress.train.projection`).
    """
    if not torch.is_grad_enabled():  # what requires a gradient is given one even where none is recorded
        weight_VD, bias_V = weight_VD.detach(), None if bias_V is None else bias_V.detach()
    return _FusedLoss.apply(hidden_ND, weight_VD, bias_V, softcap, criterion)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        criterion: Criterion,
    ) -> Tensor:
        student = Projection.of(hidden_ND, weight_VD, bias_V, softcap)
        needs = ctx.needs_input_grad[:3]
        grads = _Gradients(student, (hidden_ND, weight_VD, bias_V), needs) if any(needs) else None
        total = torch.zeros(
            (), device=hidden_ND.device, dtype=torch.promote_types(weight_VD.dtype, torch.float32)
        )
        group_tokens, tile_tokens = _sizes(student, len(weight_VD))
        # Autocast has decided what the large products are in; sums over the vocabulary it would round to bf16.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for group in slices(0, len(hidden_ND), group_tokens):
                _add_group(total, grads, student, criterion, group, tile_tokens)
        ctx.grads = grads and grads.all()
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "the gradients of a fused loss are given once"
        # In the usual step the slope is 1, and the head's gradient is large. To look at it on a GPU is to wait for all
        # that was queued, which costs more than the multiplication.
        is_one = slope.device.type == "cpu" and float(slope) == 1
        scaled = grads if is_one else [None if grad is None else grad.mul_(slope) for grad in grads]
        return *scaled, None, None


def _add_group(
    total: Tensor,
    grads: "_Gradients | None",
    student: Projection,
    criterion: Criterion,
    group: slice,
    tile_tokens: int,
) -> None:
    """Add a group's losses to the total and its gradients to the others; its products end with it."""
    product_gV = student.product(group)
    judge = criterion(student, group)
    if isinstance(judge, GroupJudge):
        losses_g, product_gV = judge.judge_group(product_gV)
        total += losses_g.sum()
    else:
        _judge_tiles(judge, student, product_gV, group, tile_tokens, total, grads is not None)
    del judge  # and the teacher's product with it
    if grads is not None:
        grads.add(group, product_gV)


def _judge_tiles(
    judge: Judge,
    student: Projection,
    product_gV: Tensor,
    group: slice,
    tile_tokens: int,
    total: Tensor,
    learns: bool,
) -> None:
    """Add a group's losses to the total, and put gradients in the product's place if anything learns from them."""
    for tile in slices(group.start, group.stop, tile_tokens):
        product_nV = product_gV[tile.start - group.start : tile.stop - group.start]
        found = student.distribution(product_nV, tile)
        losses_n, slope_nV = judge(found, tile)
        total += losses_n.sum()
        if learns:
            product_nV.copy_(student.before_cap(slope_nV, found))


class _Gradients:
    """The gradients of the loss's inputs that need one, in their dtypes, summed group by group."""

    def __init__(
        self,
        student: Projection,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        needs: tuple[bool, bool, bool],
    ) -> None:
        """`inputs`: hidden states, weight and bias; `needs`: which of them need a gradient."""
        hidden_ND, weight_VD, bias_V = inputs
        self._student, self._learns_weight = student, needs[1]
        self._hidden_ND = torch.empty_like(hidden_ND) if needs[0] else None
        self._weight_dtype = weight_VD.dtype
        starts_at_zero = _sums_in_place(weight_VD.device) or not len(hidden_ND)
        self._weight_VD = torch.zeros_like(weight_VD) if needs[1] and starts_at_zero else None
        self._bias_V = torch.zeros_like(bias_V) if needs[2] and bias_V is not None else None

    def add(self, group: slice, slopes_gV: Tensor) -> None:
        """Add a group, given the gradients in its product."""
        student = self._student
        if self._bias_V is not None:
            self._bias_V += slopes_gV.sum(0, dtype=self._bias_V.dtype)
        slopes_gV = slopes_gV.to(student.hidden.dtype)
        with torch.autocast(slopes_gV.device.type, enabled=False):
            if self._hidden_ND is not None:
                self._hidden_ND[group] = (slopes_gV @ student.weight).to(self._hidden_ND.dtype)
            if self._learns_weight:
                self._add_weight(slopes_gV, student.hidden[group])

    def all(self) -> tuple[Tensor | None, ...]:
        """Return those of hidden states, weight and bias."""
        return self._hidden_ND, self._weight_VD, self._bias_V

    def _add_weight(self, slopes_gV: Tensor, hidden_gD: Tensor) -> None:
        if _sums_in_place(slopes_gV.device):
            assert self._weight_VD is not None
            _add_product(self._weight_VD, slopes_gV, hidden_gD)
        elif self._weight_VD is None:
            shape = slopes_gV.shape[1], hidden_gD.shape[1]
            self._weight_VD = hidden_gD.new_empty(shape, dtype=self._weight_dtype)
            for rows in slices(0, len(self._weight_VD), WEIGHT_ROWS):
                self._weight_VD[rows] = slopes_gV[:, rows].T @ hidden_gD
        else:
            _add_product(self._weight_VD, slopes_gV, hidden_gD)


def _sums_in_place(device: torch.device) -> bool:
    """Whether a second tensor of the output matrix's size is spared: a GPU's memory is small, and it loses no time."""
    return device.type != "cpu"


def _add_product(total_VD: Tensor, slopes_gV: Tensor, hidden_gD: Tensor) -> None:
    """Add slopesᵀ · hidden to the total, holding nothing else of its size."""
    if total_VD.dtype == slopes_gV.dtype:
        total_VD.addmm_(slopes_gV.T, hidden_gD)
        return
    for rows in slices(0, len(total_VD), WEIGHT_ROWS):
        total_VD[rows].add_(slopes_gV[:, rows].T @ hidden_gD)  # `+=` would copy the rows onto themselves, too


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield the parts of a range, `step` long but for the last."""
    for begin in range(start, stop, step):
        yield slice(begin, min(begin + step, stop))


def _sizes(student: Projection, vocabulary: int) -> tuple[int, int]:
    """Return how many tokens a group has, and a tile."""
    device = "cpu" if student.hidden.device.type == "cpu" else "cuda"
    row = vocabulary * (student.hidden.dtype.itemsize if student.is_rounded else 4)
    group_tokens, tile_tokens = GROUP_BYTES[device] // row, max(1, TILE_BYTES[device] // (4 * vocabulary))
    if device == "cpu":
        return max(16, group_tokens), tile_tokens
    return max(CUDA_ROWS, group_tokens // CUDA_ROWS * CUDA_ROWS), tile_tokens
