"""Symmetric integers with one scale per group of neighbouring inputs: the arithmetic, without files.

A weight is `integer * scale`. The integers are signed, `-2^(b-1) .. 2^(b-1)-1`; the scale of a group is
`2 * max|w| / (2^b - 1)`, so that the largest weight of either sign is off by half a step like any other.

Shapes: N outputs, K inputs, G groups of K/G inputs, W packed words of 32 bits.
"""

import torch
from torch import Tensor


def quantize(weight_NK: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the nearest int8 integers ``[N, K]`` and the scales ``[N, G]`` in the weight's dtype.

    The integers are chosen for the scales as stored, after rounding to that dtype.
    """
    grouped_NGg = weight_NK.float().reshape(len(weight_NK), -1, group_size)
    scale_NG = grouped_NGg.abs().amax(-1) * (2 / (2**bits - 1))
    # A group of zeros gets the smallest scale instead of dividing by zero.
    scale_NG = scale_NG.to(weight_NK.dtype).clamp(min=torch.finfo(weight_NK.dtype).tiny)
    integers_NGg = (grouped_NGg / scale_NG.float()[..., None]).round()
    limit = 2 ** (bits - 1)
    return integers_NGg.clamp(-limit, limit - 1).to(torch.int8).flatten(1), scale_NG


def dequantize(integers_NK: Tensor, scale_NG: Tensor) -> Tensor:
    """Return ``integers * scale``, computed and rounded in the scales' dtype as compressed-tensors does."""
    grouped_NGg = integers_NK.to(scale_NG.dtype).reshape(*scale_NG.shape, -1)
    return (grouped_NGg * scale_NG[..., None]).flatten(1)


def pack(integers_NK: Tensor, bits: int) -> Tensor:
    """Return signed 4- or 8-bit integers as int32 words ``[N, W]``: shifted to be unsigned, lowest bits first."""
    unsigned_NK = (integers_NK.short() + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        unsigned_NK = unsigned_NK[:, 0::2] | unsigned_NK[:, 1::2] << 4
    words_NW: Tensor = unsigned_NK.contiguous().view(torch.int32)
    return words_NW


def unpack(words_NW: Tensor, bits: int) -> Tensor:
    """Return the int8 integers ``[N, K]`` that `pack` was given."""
    unsigned_NK: Tensor = words_NW.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned_NK = torch.stack([unsigned_NK & 15, unsigned_NK >> 4], dim=-1).flatten(1)
    signed_NK: Tensor = unsigned_NK.short() - 2 ** (bits - 1)
    return signed_NK.to(torch.int8)
