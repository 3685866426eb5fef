"""Logits from hidden states: fast products, and exact where it matters.

Rounding logits to bf16 makes the gradient of a divergence between close models wrong by several per cent, because it
is the small difference of two distributions. CUDA multiplies bf16 matrices into fp32. A processor rounds the result
to bf16, and takes two to three times as long for fp32. So there all logits are computed in bf16, and then again, in
fp32 from the output matrix as it is stored, those of ids with a probability above `REFINED_ABOVE`: a few dozen of a
token's. What is left of the rounding is a relative error of about 2⁻⁸ times the logit in probabilities below that; what
all logits of a token have in common is taken out first.

Shapes: N tokens, n of a tile, M single logits, D hidden size, V vocabulary.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.train.distribution import Distribution

REFINED_ABOVE = 2.0**-9
BLOCK = 64
"""Of ids that are searched together."""
CENTERED_ROWS = 1024
CENTER_STRIDE = 16
"""Of how many rows of the output matrix one is read to know about where their center is."""
GATHERED_BYTES = 16 * 2**20
"""Rows of the output matrix gathered at once for refinement."""


def product_dtype(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """Return what matrices are multiplied in: `wanted`, or under autocast its dtype."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return wanted


def _centered(weight_VD: Tensor, center_D: Tensor) -> Tensor:
    """Return the weight less a row, in bf16."""
    centered_VD = torch.empty_like(weight_VD, dtype=torch.bfloat16)
    # A block at a time, so that its differences in fp32 never leave the cache.
    for rows, centered in zip(
        *(torch.split(each, CENTERED_ROWS) for each in (weight_VD, centered_VD)), strict=True
    ):
        centered.copy_(rows - center_D)
    return centered_VD


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of half-precision matrices in fp32; not on a processor."""
    return torch.mm(left, right, out_dtype=torch.float32)


def _likely(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places, tokens ``[M]``, ascending, and ids ``[M]``, of all probabilities above `REFINED_ABOVE`.

    And of some below it: normalizers are known about, and rather from below. Every token has one place at least, that
    of its highest logit.
    """
    if logits_NV.shape[1] % BLOCK:
        bound_N1 = _bound(logits_NV.amax(-1, keepdim=True), logits_NV.logsumexp(-1, keepdim=True))
        return (logits_NV > bound_N1).nonzero(as_tuple=True)  # type: ignore[return-value]
    # Few blocks of neighbours hold any: their maxima are read much faster than all values are compared.
    blocks_NKB = logits_NV.view(len(logits_NV), -1, BLOCK)
    highest_NK = blocks_NKB.amax(-1)
    # Of a block's other logits, most are above the lower one of two.
    lower_NK = blocks_NKB[..., :: BLOCK // 2].amin(-1)
    others_N1 = lower_NK.logsumexp(-1, keepdim=True) + math.log(BLOCK - 2)
    normalizer_N1 = torch.logaddexp(highest_NK.logsumexp(-1, keepdim=True), others_N1)
    bound_N1 = _bound(highest_NK.amax(-1, keepdim=True), normalizer_N1)
    tokens, blocks = (highest_NK > bound_N1).nonzero(as_tuple=True)
    among_M, inside_M = (blocks_NKB[tokens, blocks] > bound_N1[tokens]).nonzero(as_tuple=True)
    return tokens[among_M], blocks[among_M] * BLOCK + inside_M


def _bound(highest_N1: Tensor, normalizer_N1: Tensor) -> Tensor:
    """Return what the logits of likely ids are above: less than the highest, ``[N, 1]``."""
    below_it_N1 = torch.nextafter(highest_N1, highest_N1.new_tensor(-torch.inf))
    return torch.minimum(normalizer_N1 + math.log(REFINED_ABOVE), below_it_N1)


@dataclass
class Projection:
    """An output layer on the hidden states of some tokens.

    hidden ``[N, D]`` and weight ``[V, D]`` of one dtype; bias ``[V]`` fp32 or fp64; softcap as Gemma 2 bends its
    logits, ``c · tanh(x / c)``. Logits are right but for a constant of each token.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    stored: Tensor | None = None
    """Where products are rounded: the weight before it was."""
    center: Tensor | None = None
    """What was taken from each of its rows then, ``[D]`` fp32.

    It takes from each token's logits a constant. No softmax sees that, but their rounding is relative to their size,
    and GPT-2's are all about 100 below zero.
    """

    @classmethod
    @torch.no_grad()
    def of(
        cls, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None = None, softcap: float | None = None
    ) -> "Projection":
        """Return the projection in the dtype that products have here: autocast's, or the weight's."""
        dtype = product_dtype(hidden_ND.device, weight_VD.dtype)
        bias_V = None if bias_V is None else bias_V.to(torch.promote_types(dtype, torch.float32))
        found = cls(hidden_ND.to(dtype), weight_VD, bias_V, softcap)
        if not found.is_rounded:
            return replace(found, weight=weight_VD.to(dtype))
        if softcap is not None:
            return replace(found, weight=weight_VD.to(dtype), stored=weight_VD)
        center_D = weight_VD[::CENTER_STRIDE].mean(0, dtype=torch.float32)
        return replace(found, weight=_centered(weight_VD, center_D), stored=weight_VD, center=center_D)

    @property
    def is_rounded(self) -> bool:
        """Whether products come out rounded to bf16, and are refined."""
        return self.hidden.dtype == torch.bfloat16 and self.hidden.device.type == "cpu"

    @property
    def product_dtype(self) -> torch.dtype:
        """What products come out in: bf16 where rounded, else fp32 or fp64."""
        dtype = self.hidden.dtype
        return dtype if self.is_rounded else torch.promote_types(dtype, torch.float32)

    def product(self, tokens: slice) -> Tensor:
        """Return hidden states times weight ``[n, V]``, in `product_dtype`."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            if self.is_rounded or self.hidden.dtype.itemsize > 2:
                return self.hidden[tokens] @ self.weight.T
            return _wide_product(self.hidden[tokens], self.weight.T)

    def distribution(self, product_nV: Tensor, tokens: slice) -> Distribution:
        """Return the distributions of some tokens from their part of the product, which is left as it is."""
        logits_nV = self._logits(product_nV, self.bias)
        if not self.is_rounded:
            return Distribution.of(logits_nV)
        tokens_M, ids_M = _likely(logits_nV)
        if not len(ids_M):  # logits that are no numbers are above nothing
            return Distribution.of(logits_nV)
        exact_M = self._exactly(self.hidden[tokens].float(), tokens_M, ids_M)
        logits_nV.index_put_((tokens_M, ids_M), exact_M)
        first_n = torch.searchsorted(tokens_M, torch.arange(len(logits_nV), device=tokens_M.device))
        return Distribution.of(logits_nV, ids_M[first_n.clamp_max(len(ids_M) - 1)])

    def before_cap(self, slope_nV: Tensor, found: Distribution) -> Tensor:
        """Return a gradient in the logits as one in the product."""
        if self.softcap is None:
            return slope_nV
        return slope_nV * (1 - (found.logits / self.softcap).square())

    def _logits(self, product: Tensor, bias: Tensor | None) -> Tensor:
        logits = product.to(torch.promote_types(product.dtype, torch.float32))
        if bias is not None:
            logits = logits + bias
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _exactly(self, hidden_nD: Tensor, tokens_M: Tensor, ids_M: Tensor) -> Tensor:
        """Return the logits of some pairs of token and id ``[M]``."""
        stored_VD = self.weight if self.stored is None else self.stored
        step = max(1, GATHERED_BYTES // (4 * hidden_nD.shape[1]))
        products = [
            torch.linalg.vecdot(hidden_nD.index_select(0, tokens), stored_VD.index_select(0, ids).float())
            for tokens, ids in zip(torch.split(tokens_M, step), torch.split(ids_M, step), strict=True)
        ]
        product_M = torch.cat(products)
        if self.center is not None:
            product_M -= (hidden_nD @ self.center)[tokens_M]
        return self._logits(product_M, None if self.bias is None else self.bias[ids_M])
