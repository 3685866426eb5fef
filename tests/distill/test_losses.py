"""The contract of every file in `compress/distill/losses`.

Shapes: N tokens, V vocabulary.
"""

import math

import pytest
import torch
from torch.autograd import gradcheck

from compress import plugins
from compress.distill.losses import forward_kl, reverse_kl

NAMES = plugins.available("distill.losses")
N, V = 5, 13


@pytest.fixture(params=NAMES)
def divergence(request):
    return plugins.load("distill.losses", request.param).divergence


def logits(seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def slow_kl(p_NV: torch.Tensor, q_NV: torch.Tensor) -> torch.Tensor:
    rows = zip(map(softmax, p_NV.tolist()), map(softmax, q_NV.tolist()), strict=True)
    sums = [math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for p, q in rows]
    return torch.tensor(sums, dtype=torch.float64)


def test_there_are_divergences():
    assert {"forward_kl", "reverse_kl"} <= set(NAMES)


def test_equal_models_diverge_by_zero_and_have_no_gradient(divergence):
    student_NV = logits(0).requires_grad_()
    loss_N = divergence(student_NV, student_NV.detach())
    assert loss_N.shape == (N,) and not loss_N.any()
    assert float(torch.autograd.grad(loss_N.sum(), student_NV)[0].abs().max()) < 1e-15


def test_different_models_diverge_by_more_than_zero(divergence):
    assert (divergence(logits(0), logits(1)) > 0).all()


def test_a_constant_added_to_logits_changes_nothing(divergence):
    moved_N = divergence(logits(0) + 5, logits(1) - 7)
    torch.testing.assert_close(moved_N, divergence(logits(0), logits(1)))


def test_the_gradient_is_that_of_the_value(divergence):
    assert gradcheck(lambda student_NV: divergence(student_NV, logits(1)), logits(0).requires_grad_())


def test_fp32_is_close_to_fp64_even_for_extreme_logits(divergence):
    student_NV, teacher_NV = logits(0, scale=40), logits(1, scale=40)
    single_N = divergence(student_NV.float(), teacher_NV.float())
    assert single_N.dtype == torch.float32
    torch.testing.assert_close(single_N.double(), divergence(student_NV, teacher_NV), rtol=1e-5, atol=1e-5)


def test_scaled_by_its_square_a_high_temperature_tends_to_half_the_logits_mean_square_distance(divergence):
    """Hinton et al. 2015, Eq. 4, for logits without their mean."""
    student_NV, teacher_NV = logits(0), logits(1)
    T = 1e4
    distance_NV = (student_NV - student_NV.mean(-1, True)) - (teacher_NV - teacher_NV.mean(-1, True))
    limit_N = distance_NV.square().mean(-1) / 2
    torch.testing.assert_close(T**2 * divergence(student_NV / T, teacher_NV / T), limit_N, rtol=1e-3, atol=0)


def test_forward_kl_is_the_sum_in_its_definition():
    torch.testing.assert_close(forward_kl.divergence(logits(0), logits(1)), slow_kl(logits(1), logits(0)))


def test_reverse_kl_is_the_sum_in_its_definition():
    torch.testing.assert_close(reverse_kl.divergence(logits(0), logits(1)), slow_kl(logits(0), logits(1)))


def test_the_gradient_of_forward_kl_is_the_difference_of_the_distributions():
    student_NV, teacher_NV = logits(0).requires_grad_(), logits(1)
    (slope_NV,) = torch.autograd.grad(forward_kl.divergence(student_NV, teacher_NV).sum(), student_NV)
    torch.testing.assert_close(slope_NV, student_NV.detach().softmax(-1) - teacher_NV.softmax(-1))
