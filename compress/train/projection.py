"""Logits from hidden states: fast products, and exact where it matters.

Rounding logits to bf16 makes the gradient of a divergence between close models wrong by several per cent, because it
is the small difference of two distributions. CUDA multiplies bf16 matrices into fp32. A processor rounds the result
to bf16, and takes two to three times as long for fp32. So there all logits are computed in bf16, and then again, as
sums in fp32 of the same inputs, those of ids with a probability above `REFINED_ABOVE`: a few dozen of a token's. What
is left of the rounding is a relative error of at most 2⁻⁹ times the logit in probabilities below that; what all
logits of a token have in common is taken out first.

Shapes: N tokens, n of a tile, M single logits, D hidden size, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.train.distribution import Distribution

REFINED_ABOVE = 2.0**-10
SEARCHED_BY_BLOCKS, BLOCK = 16_384, 64
CENTERED_ROWS = 1024
GATHERED_BYTES = 64 * 2**20
"""Rows of the output matrix gathered at once for refinement."""


def product_dtype(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """Return what matrices are multiplied in: `wanted`, or under autocast its dtype."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return wanted


@torch.no_grad()
def _centered(weight_VD: Tensor) -> Tensor:
    """Return the weight less its mean over the vocabulary, in bf16.

    This takes from each token's logits their mean. No softmax sees it, but their rounding is relative to their size:
    GPT-2's are all near −100.
    """
    blocks = torch.split(weight_VD, CENTERED_ROWS)
    mean_D = torch.stack([block.sum(0, dtype=torch.float32) for block in blocks]).sum(0) / len(weight_VD)
    centered_VD = torch.empty_like(weight_VD, dtype=torch.bfloat16)
    # A block at a time, so that its differences in fp32 never leave the cache.
    for block, rounded in zip(blocks, torch.split(centered_VD, CENTERED_ROWS), strict=True):
        rounded.copy_(block - mean_D)
    return centered_VD


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of half-precision matrices in fp32; not on a processor."""
    return torch.mm(left, right, out_dtype=torch.float32)


def _above(values_NV: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return the places, tokens ``[M]`` and ids ``[M]``, of values above a bound."""
    num_tokens, vocabulary = values_NV.shape
    if vocabulary < SEARCHED_BY_BLOCKS or vocabulary % BLOCK:
        return (values_NV > bound).nonzero(as_tuple=True)  # type: ignore[return-value]
    # Few blocks of neighbours hold any: their maxima are read much faster than all values are compared.
    blocks_NKB = values_NV.view(num_tokens, -1, BLOCK)
    tokens, blocks = (blocks_NKB.amax(-1) > bound).nonzero(as_tuple=True)
    among_M, inside_M = (blocks_NKB[tokens, blocks] > bound).nonzero(as_tuple=True)
    return tokens[among_M], blocks[among_M] * BLOCK + inside_M


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

    @classmethod
    def of(
        cls, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None = None, softcap: float | None = None
    ) -> "Projection":
        """Return the projection in the dtype that products have here: autocast's, or the weight's."""
        dtype = product_dtype(hidden_ND.device, weight_VD.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        bias_V = None if bias_V is None else bias_V.to(wide)
        found = cls(hidden_ND.to(dtype), weight_VD.to(dtype), bias_V, softcap)
        return replace(found, weight=_centered(weight_VD)) if found.is_rounded and softcap is None else found

    @property
    def is_rounded(self) -> bool:
        """Whether products come out rounded to bf16, and are refined."""
        return self.hidden.dtype == torch.bfloat16 and self.hidden.device.type == "cpu"

    def product(self, tokens: slice) -> Tensor:
        """Return hidden states times weight ``[n, V]``: bf16 where rounded, else fp32 or fp64."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            if self.is_rounded or self.hidden.dtype.itemsize > 2:
                return self.hidden[tokens] @ self.weight.T
            return _wide_product(self.hidden[tokens], self.weight.T)

    def distribution(self, product_nV: Tensor, tokens: slice) -> Distribution:
        """Return the distributions of some tokens from their part of the product, which is left as it is."""
        found = Distribution.of(self._logits(product_nV, self.bias))
        if self.is_rounded:
            tokens_M, ids_M = _above(found.probs, REFINED_ABOVE)
            if len(ids_M):
                found.correct(tokens_M, ids_M, self._exactly(tokens_M + tokens.start, ids_M))
        return found

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

    def _exactly(self, tokens_M: Tensor, ids_M: Tensor) -> Tensor:
        step = max(1, GATHERED_BYTES // (4 * self.hidden.shape[1]))
        products = [
            torch.linalg.vecdot(self.hidden[tokens].float(), self.weight[ids].float())
            for tokens, ids in zip(torch.split(tokens_M, step), torch.split(ids_M, step), strict=True)
        ]
        return self._logits(torch.cat(products), None if self.bias is None else self.bias[ids_M])
