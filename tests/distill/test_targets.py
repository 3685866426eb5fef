"""Shapes: N tokens, V vocabulary, K ids of a target."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from compress.distill.targets import sparse_loss, sparse_targets

VOCABULARY = 50


def logits(num: int = 6, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return 2 * torch.randn(
        num, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def places(num: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(student_NV, loss) -> torch.Tensor:
    student_NV = student_NV.clone().requires_grad_()
    loss(student_NV).sum().backward()
    return student_NV.grad


def full_kl(student_NV, teacher_NV):
    return functional.kl_div(
        student_NV.log_softmax(-1), teacher_NV.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def test_the_likely_ids_are_exact_ascending_and_leave_the_tail():
    teacher_NV = logits()
    targets = sparse_targets(teacher_NV, 5, places(6), 0)
    p_NV = teacher_NV.softmax(-1)
    top = p_NV.topk(5)
    torch.testing.assert_close(targets.ids_NK, top.indices.sort(-1).values)
    torch.testing.assert_close(targets.probs_NK, p_NV.gather(-1, targets.ids_NK))
    torch.testing.assert_close(targets.tail_N, 1 - top.values.sum(-1))
    torch.testing.assert_close(targets.entropy_N, -(p_NV * p_NV.log()).sum(-1))


def test_a_bucket_is_one_outcome_more_on_both_sides():
    teacher_NV, student_NV = logits(), logits(seed=1)
    targets = sparse_targets(teacher_NV, 5, places(6), 0)

    def merged(logits_NV):
        q_NV = logits_NV.softmax(-1)
        likely_NK = q_NV.gather(-1, targets.ids_NK)
        return torch.cat([likely_NK, 1 - likely_NK.sum(-1, keepdim=True)], -1)

    p_NK, q_NK = merged(teacher_NV), merged(student_NV)
    expected_N = (p_NK * (p_NK / q_NK).log()).sum(-1)
    torch.testing.assert_close(sparse_loss(student_NV, targets), expected_N)
    assert (expected_N < full_kl(student_NV, teacher_NV)).all()


@pytest.mark.parametrize("samples", [0, 4], ids=["bucket", "sampled"])
def test_with_all_ids_the_loss_and_its_gradient_are_those_of_the_whole_distribution(samples):
    teacher_NV, student_NV = logits(), logits(seed=1)
    targets = sparse_targets(teacher_NV, 2 * VOCABULARY, places(6), samples)
    torch.testing.assert_close(sparse_loss(student_NV, targets), full_kl(student_NV, teacher_NV))
    torch.testing.assert_close(
        slope(student_NV, lambda q_NV: sparse_loss(q_NV, targets)),
        slope(student_NV, lambda q_NV: full_kl(q_NV, teacher_NV)),
    )


@pytest.mark.parametrize("samples", [0, 4], ids=["bucket", "sampled"])
def test_an_impossible_id_breaks_nothing(samples):
    teacher_NV = logits()
    teacher_NV[:, ::3] = -torch.inf
    targets = sparse_targets(teacher_NV, 5, places(6), samples)
    assert sparse_loss(logits(seed=1), targets).isfinite().all()
    assert (targets.ids_NK % 3 != 0).all()


def test_the_expected_loss_and_gradient_with_samples_are_those_of_the_whole_distribution():
    num = 20_000
    teacher_1V, student_1V = logits(1), logits(1, seed=1)
    targets = sparse_targets(teacher_1V.expand(num, -1), 4, places(num), 3)
    losses_N = sparse_loss(student_1V.expand(num, -1), targets)
    slopes_NV = slope(student_1V.expand(num, -1), lambda q_NV: sparse_loss(q_NV, targets))

    def distance(values, expected):
        """In standard errors; where there is no spread, in roundings."""
        error = values.std(0) / num**0.5 + 1e-12
        return float(((values.mean(0) - expected).abs() / error).max())

    whole = slope(student_1V, lambda q_NV: full_kl(q_NV, teacher_1V))[0]
    assert distance(losses_N, full_kl(student_1V, teacher_1V)[0]) < 4
    assert distance(slopes_NV, whole) < 5  # the farthest of fifty
    # The same test sees that the bucket alone, with the same spread, is biased.
    bucket = replace(targets, ids_NK=targets.ids_NK[:, :4], probs_NK=targets.probs_NK[:, :4])
    biased_1V = slope(student_1V, lambda q_NV: sparse_loss(q_NV, bucket[:1]))
    assert distance(slopes_NV - slopes_NV.mean(0) + biased_1V, whole) > 50


def test_the_noise_of_samples_vanishes_as_the_student_nears_its_teacher():
    teacher_NV = logits(200)
    targets = sparse_targets(teacher_NV, 4, places(200), 3)
    noise = []
    for distance in (1.0, 0.1, 0.0):
        student_NV = teacher_NV + distance * logits(200, seed=1)
        ours_NV = slope(student_NV, lambda q_NV: sparse_loss(q_NV, targets))
        theirs_NV = slope(student_NV, lambda q_NV: full_kl(q_NV, teacher_NV))
        noise.append(float((ours_NV - theirs_NV).norm()))
    assert noise[1] < 0.2 * noise[0] and noise[2] < 1e-9
    assert float(sparse_loss(teacher_NV, targets).abs().max()) < 1e-9


def test_systematic_samples_are_read_as_often_as_they_weigh_give_or_take_one():
    teacher_NV = logits(500).div(4)
    targets = sparse_targets(teacher_NV, 4, places(500), 40)
    rest_NV = teacher_NV.softmax(-1).scatter(-1, targets.ids_NK[:, :4], 0.0)
    counts_NV = torch.zeros_like(rest_NV).scatter_add_(
        -1, targets.ids_NK[:, 4:], torch.ones(500, 40, dtype=torch.float64)
    )
    assert float((counts_NV - 40 * rest_NV / rest_NV.sum(-1, keepdim=True)).abs().max()) < 1
    assert (targets.ids_NK[:, 4:].diff(dim=-1) >= 0).all()


def test_some_of_the_tokens_keep_their_own_targets():
    targets = sparse_targets(logits(), 5, places(6), 4)
    student_NV = logits(seed=1)
    torch.testing.assert_close(
        sparse_loss(student_NV[2:4], targets[2:4]), sparse_loss(student_NV, targets)[2:4]
    )
    assert len(targets[2:4]) == 2
