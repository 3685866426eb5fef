"""Learning from whole rows by a kernel, where there is one: forward KL and labels on a GPU.

Shapes: N tokens, g of a group, V vocabulary.
"""

from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from compress.distill.divergences import Divergence
from compress.distill.losses import forward_kl
from compress.train.fused import GroupJudge
from compress.train.projection import Projection

ALIGNMENT = 8
"""Rows of half-precision gradients begin at multiples of 16 bytes, which a GPU's matrix products need to be fast."""


def has_kernel(divergence: Divergence, product: Tensor) -> bool:
    """Return whether `KernelJudge` computes a divergence from such products.

    Triton is there beside PyTorch for CUDA.
    """
    is_forward_kl = isinstance(divergence, partial) and divergence.func is forward_kl.divergence
    return is_forward_kl and product.is_cuda and product.dtype == torch.float32 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True)
class KernelJudge(GroupJudge):
    """``(1 − w) · T² · KL(teacher at T ‖ student at T) + w · CE`` of a group, w < 1."""

    teacher: Projection
    teacher_product: Tensor
    """``[g, V]``, as `Projection.product` returns it."""
    targets: Tensor
    """``[g]``."""
    temperature: float
    label_weight: float

    def judge_group(self, student: Projection, product_gV: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupJudge`."""
        from compress.distill.row_kernel import kl_of_rows

        num_tokens, vocabulary = product_gV.shape
        stride = -(-vocabulary // ALIGNMENT) * ALIGNMENT
        slopes_gV = product_gV.new_empty(num_tokens, stride, dtype=student.hidden.dtype)[:, :vocabulary]
        losses_g = kl_of_rows(
            product_gV,
            self.teacher_product,
            self.targets.contiguous(),
            slopes_gV,
            biases=(student.bias, self.teacher.bias),
            softcaps=(student.softcap, self.teacher.softcap),
            temperature=self.temperature,
            label_weight=self.label_weight,
        )
        return losses_g, slopes_gV
