"""Shapes: N tokens, K likely ids, S sampled ids."""

import numpy as np
import pytest
import torch

from compress.distill.coding import FARTHEST, STEPS, Coding
from compress.distill.targets import sparse_loss, sparse_targets


def trained_like(num: int, vocabulary: int, sharpness: float = 1.1) -> torch.Tensor:
    """Logits whose ranks fall like those of a trained model, over ids in any order."""
    generator = torch.Generator().manual_seed(0)
    ranks_V = -sharpness * torch.arange(1, vocabulary + 1).log()
    noisy_NV = ranks_V + 2 * torch.randn(num, vocabulary, generator=generator)
    return noisy_NV[:, torch.randperm(vocabulary, generator=generator)]


def coded(logits_NV, top_k, samples):
    places_N = torch.rand(len(logits_NV), generator=torch.Generator().manual_seed(1))
    targets = sparse_targets(logits_NV, top_k, places_N, samples)
    coding = Coding(logits_NV.shape[1], targets.num_likely, samples)
    return coding, targets, coding.decode(coding.encode(targets))


def assert_within_the_bound(after_NK, before_NK):
    """How far a logarithm is below the largest one's."""
    below_NK, decoded_NK = (
        (probs_NK.amax(-1, keepdim=True) / probs_NK).log()
        for probs_NK in (before_NK.double(), after_NK.double())
    )
    range_N1 = below_NK.amax(-1, keepdim=True)
    # R is stored with 11 bits.
    bound_NK = (below_NK * range_N1).sqrt() / STEPS + range_N1 / STEPS**2 + range_N1 * 2**-11 + 1e-5
    assert ((decoded_NK - below_NK).abs() <= bound_NK)[below_NK < FARTHEST].all()


@pytest.mark.parametrize("samples", [0, 16])
@pytest.mark.parametrize("sharpness", [0.0, 1.1, 5.0])
@pytest.mark.parametrize("vocabulary", [259, 8_192])
def test_ids_tail_and_entropy_come_back_and_masses_within_the_bound(vocabulary, sharpness, samples):
    _, before, after = coded(trained_like(40, vocabulary, sharpness), 32, samples)
    assert torch.equal(after.ids_NK, before.ids_NK) and after.num_likely == before.num_likely
    assert torch.equal(after.entropy_N, before.entropy_N) and torch.equal(after.tail_N, before.tail_N)
    torch.testing.assert_close(after.probs_NK[:, :32].sum(-1) + after.tail_N, torch.ones(40))
    assert_within_the_bound(after.probs_NK[:, :32], before.probs_NK[:, :32])
    if samples:
        ours_NS, theirs_NS = (each.probs_NK[:, 32:] for each in (after, before))
        assert_within_the_bound(ours_NS, theirs_NS)
        torch.testing.assert_close(ours_NS.amax(-1), theirs_NS.amax(-1), rtol=0.01, atol=0)


@pytest.mark.parametrize("samples", [0, 3])
def test_a_vocabulary_that_is_all_likely_leaves_nothing_to_sample(samples):
    _, before, after = coded(trained_like(40, 20), 32, samples)
    assert after.num_likely == 20 and torch.equal(after.ids_NK, before.ids_NK)
    assert not after.tail_N.any() and not after.probs_NK[:, 20:].any()
    student_NV = trained_like(40, 20, sharpness=2.0)
    torch.testing.assert_close(
        sparse_loss(student_NV, after), sparse_loss(student_NV, before), rtol=0.02, atol=0.02
    )


def test_the_likeliest_id_stays_the_only_one_however_close_the_next():
    logits_NV = trained_like(8, 259)
    first_N2 = logits_NV.topk(2).indices.sort(-1).values
    logits_NV.scatter_(-1, first_N2, torch.tensor([[6.0, 6.00001]]).expand(8, 2))
    _, before, after = coded(logits_NV, 24, 16)
    assert torch.equal(before.likeliest, logits_NV.argmax(-1))
    assert torch.equal(after.likeliest, logits_NV.argmax(-1))


def test_of_equals_the_lowest_id_counts_as_the_likeliest():
    logits_NV = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
    _, _, after = coded(logits_NV, 3, 0)
    assert after.likeliest.tolist() == logits_NV.argmax(-1).tolist() == [1]


def test_a_mass_below_all_meaning_is_still_one():
    _, _, after = coded(torch.tensor([[0.0, -200.0, -50.0, -1.0]]), 4, 0)
    assert after.probs_NK.isfinite().all() and float(after.probs_NK[0, 1]) <= np.exp(-FARTHEST + 0.1)


@pytest.mark.parametrize("samples", [0, 16])
def test_a_certain_teacher_leaves_a_finite_loss(samples):
    logits_NV = torch.full((2, 50), -300.0)
    logits_NV[:, 3] = 0
    _, _, after = coded(logits_NV, 4, samples)
    assert sparse_loss(trained_like(2, 50), after).isfinite().all()


@pytest.mark.parametrize(("top_k", "samples", "most"), [(32, 0, 98), (24, 16, 127)])
def test_the_default_settings_take_less_than_128_bytes_at_a_vocabulary_of_128k(top_k, samples, most):
    coding, before, after = coded(trained_like(64, 131_072), top_k, samples)
    assert coding.encode(before).shape == (64, coding.num_bytes) and coding.num_bytes <= most
    assert torch.equal(after.ids_NK, before.ids_NK)
    moved_N = (after.probs_NK - before.probs_NK)[:, :top_k].abs().sum(-1)
    assert float(moved_N.mean()) < 0.004
