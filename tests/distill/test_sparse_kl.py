"""Shapes: N tokens, V vocabulary."""

from dataclasses import replace

import pytest
import torch

from compress.distill.coding import Coding
from compress.distill.sparse_kl import sparse_forward_kl
from compress.distill.targets import sparse_loss, sparse_targets
from compress.train.distribution import Distribution


def logits(num=8, vocabulary=300, seed=0, dtype=torch.float64):
    return 3 * torch.randn(num, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference(student_NV, targets):
    student_NV = student_NV.clone().requires_grad_()
    loss_N = sparse_loss(student_NV, targets)
    (slope_NV,) = torch.autograd.grad(loss_N.sum(), student_NV)
    return loss_N.detach(), slope_NV


@pytest.mark.parametrize("samples", [0, 1, 40])
@pytest.mark.parametrize("top_k", [1, 20, 300])
def test_loss_and_gradient_are_those_of_the_reference(top_k, samples):
    targets = sparse_targets(logits(), top_k, torch.linspace(0, 0.9, 8, dtype=torch.float64), samples)
    student_NV = logits(seed=1)
    found = sparse_forward_kl(Distribution.of(student_NV), targets)
    for ours, theirs in zip(found, reference(student_NV, targets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("samples", [0, 16])
def test_in_single_precision_the_gradient_of_close_models_is_exact_within_a_percent(samples):
    teacher_NV = logits(64, 8_192)
    student_NV = teacher_NV + 0.03 * logits(64, 8_192, seed=1)
    targets = sparse_targets(teacher_NV.float(), 24, torch.rand(64), samples)
    exact = replace(targets, probs_NK=targets.probs_NK.double(), tail_N=targets.tail_N.double())
    loss_N, slope_NV = sparse_forward_kl(Distribution.of(student_NV.float()), targets)
    expected_N, expected_NV = reference(student_NV, exact)
    assert float((slope_NV - expected_NV).norm() / expected_NV.norm()) < 0.01
    torch.testing.assert_close(loss_N.double(), expected_N, rtol=0, atol=1e-5)


def test_decoded_targets_of_a_certain_teacher_give_finite_gradients():
    teacher_NV = torch.full((3, 300), -300.0)
    teacher_NV[:, 5] = 0
    targets = sparse_targets(teacher_NV, 8, torch.rand(3), 4)
    coding = Coding(300, 8, 4)
    for student_NV in (logits(3, dtype=torch.float32), teacher_NV):
        found = sparse_forward_kl(Distribution.of(student_NV), coding.decode(coding.encode(targets)))
        assert all(tensor.isfinite().all() for tensor in found)
