import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from compress.quantize.grouped import dequantize, pack, quantize, unpack

CASES = [(bits, group) for bits in (4, 8) for group in (16, 48, 96)]


def random_weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(40, 96, generator=torch.Generator().manual_seed(0)).to(dtype)


def slow_quantize(weight: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, one weight at a time."""
    integers = torch.zeros(weight.shape, dtype=torch.int8)
    scales = torch.zeros(len(weight), weight.shape[1] // group_size)
    for row in range(len(weight)):
        for group in range(scales.shape[1]):
            columns = range(group * group_size, (group + 1) * group_size)
            largest = max(abs(float(weight[row, column])) for column in columns)
            scales[row, group] = 2 * largest / (2**bits - 1)
            for column in columns:
                nearest = round(float(weight[row, column] / scales[row, group]))
                integers[row, column] = min(max(nearest, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return integers, scales


@pytest.mark.parametrize(("bits", "group_size"), CASES)
def test_no_weight_is_off_by_more_than_half_a_step(bits, group_size):
    weight = random_weight()
    integers, scale = quantize(weight, bits, group_size)
    error = (dequantize(integers, scale) - weight).abs().reshape(*scale.shape, -1)
    assert (error <= scale[..., None] * (0.5 + 1e-5)).all()


@pytest.mark.parametrize(("bits", "group_size"), CASES)
def test_integers_and_scales_follow_the_definition(bits, group_size):
    weight = random_weight()
    integers, scale = quantize(weight, bits, group_size)
    slow_integers, slow_scale = slow_quantize(weight, bits, group_size)
    torch.testing.assert_close(scale, slow_scale, rtol=1e-6, atol=0)
    steps = (weight.reshape(*scale.shape, -1) / scale[..., None]).flatten(1)
    # A group's largest weight stands exactly between two integers, and the last bit of its scale decides.
    is_tie = (steps.abs() - (2 ** (bits - 1) - 0.5)).abs() < 1e-3
    assert torch.equal(integers[~is_tie], slow_integers[~is_tie])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_are_chosen_for_the_scales_as_stored(dtype):
    weight = random_weight(dtype)
    integers, scale = quantize(weight, 4, 16)
    assert scale.dtype == dtype
    steps = weight.float().reshape(*scale.shape, -1) / scale.float()[..., None]
    assert torch.equal(integers, steps.round().clamp(-8, 7).to(torch.int8).flatten(1))


def test_a_group_of_zeros_stays_zero():
    integers, scale = quantize(torch.zeros(2, 32), 4, 16)
    assert torch.equal(dequantize(integers, scale), torch.zeros(2, 32))


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_returns_what_was_packed(bits):
    integers, _ = quantize(random_weight(), bits, 16)
    words = pack(integers, bits)
    assert words.dtype == torch.int32
    assert words.shape == (40, 96 * bits // 32)
    assert torch.equal(unpack(words, bits), integers)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_those_of_compressed_tensors(bits):
    integers, _ = quantize(random_weight(), bits, 16)
    assert torch.equal(pack(integers, bits), pack_to_int32(integers, bits))
