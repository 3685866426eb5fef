"""Shapes: N tokens, K likely ids, S sampled ids."""

import numpy as np
import pytest
import torch

from compress.distill.coding import FARTHEST, STEPS, Coding
from compress.distill.targets import sparse_targets


def trained_like(num: int, vocabulary: int, sharpness: float = 1.1) -> torch.Tensor:
    """Logits whose ranks fall like those of a trained model, over ids in any order."""
    generator = torch.Generator().manual_seed(0)
    ranks_V = -sharpness * torch.arange(1, vocabulary + 1).log()
    noisy_NV = ranks_V + 2 * torch.randn(num, vocabulary, generator=generator)
    return noisy_NV[:, torch.randperm(vocabulary, generator=generator)]


def coded(logits_NV, top_k, tail, samples):
    vocabulary = logits_NV.shape[1]
    places_N = torch.rand(len(logits_NV), generator=torch.Generator().manual_seed(1))
    targets = sparse_targets(logits_NV, top_k, tail, places_N, samples)
    coding = Coding(vocabulary, min(top_k, vocabulary), tail, samples if tail == "sampled" else 0)
    return coding, targets, coding.decode(coding.encode(targets))


@pytest.mark.parametrize("tail", ["bucket", "sampled"])
@pytest.mark.parametrize("sharpness", [0.0, 1.1, 20.0])
@pytest.mark.parametrize("vocabulary", [20, 259, 8_192])
def test_ids_tail_and_entropy_come_back_and_masses_within_the_bound(vocabulary, sharpness, tail):
    coding, before, after = coded(trained_like(40, vocabulary, sharpness), 32, tail, 16)
    assert torch.equal(after.ids_NK, before.ids_NK) and after.has_bucket == before.has_bucket
    assert torch.equal(after.entropy_N, before.entropy_N) and torch.equal(after.tail_N, before.tail_N)
    torch.testing.assert_close(after.probs_NK[:, coding.top_k :], before.probs_NK[:, coding.top_k :])
    torch.testing.assert_close(after.probs_NK.sum(-1) + after.tail_N, torch.ones(40))
    ours_NK, theirs_NK = (t.probs_NK[:, : coding.top_k].double() for t in (after, before))
    below_NK = (theirs_NK.amax(-1, keepdim=True) / theirs_NK).log()
    decoded_NK = (ours_NK.amax(-1, keepdim=True) / ours_NK).log()
    range_N1 = below_NK.amax(-1, keepdim=True)
    near_NK = below_NK < FARTHEST
    # R is stored with 11 bits.
    bound_NK = (below_NK * range_N1).sqrt() / STEPS + range_N1 / (4 * STEPS**2) + range_N1 * 2**-11 + 1e-5
    assert ((decoded_NK - below_NK).abs() <= bound_NK)[near_NK].all()


def test_a_mass_below_all_meaning_is_still_one():
    _, _, after = coded(torch.tensor([[0.0, -200.0, -50.0, -1.0]]), 4, "bucket", 0)
    assert after.probs_NK.isfinite().all() and float(after.probs_NK[0, 1]) <= np.exp(-FARTHEST + 0.1)


@pytest.mark.parametrize(("tail", "most"), [("bucket", 100), ("sampled", 128)])
def test_the_default_settings_take_at_most_128_bytes_at_a_vocabulary_of_128k(tail, most):
    coding, before, after = coded(trained_like(64, 131_072), 32, tail, 16)
    assert coding.encode(before).shape == (64, coding.num_bytes) and coding.num_bytes <= most
    assert torch.equal(after.ids_NK, before.ids_NK)
    moved_N = (after.probs_NK - before.probs_NK).abs().sum(-1)
    assert float(moved_N.mean()) < 0.004
