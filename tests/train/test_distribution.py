"""Shapes: N tokens, V vocabulary."""

import torch
from torch.nn import functional

from compress.train.distribution import Distribution, cross_entropy

N, V = 6, 17


def logits(seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_distribution_knows_its_probabilities_normalizer_and_entropy():
    found, expected = Distribution.of(logits()), torch.distributions.Categorical(logits=logits())
    torch.testing.assert_close(found.probs, expected.probs)
    torch.testing.assert_close(found.log_normalizer, logits().logsumexp(-1))
    torch.testing.assert_close(found.log_probs, logits().log_softmax(-1))
    torch.testing.assert_close(found.entropy(), expected.entropy())


def test_a_known_id_tells_the_normalizer_as_well_as_the_highest_logit():
    found = Distribution.of(logits(), torch.arange(N))
    torch.testing.assert_close(found.log_normalizer, logits().logsumexp(-1))
    torch.testing.assert_close(found.probs, logits().softmax(-1))


def test_at_a_temperature_logits_are_divided_by_it():
    torch.testing.assert_close(
        Distribution.of(logits()).at_temperature(2.5).probs, (logits() / 2.5).softmax(-1)
    )


def test_cross_entropy_and_its_gradient_are_those_of_torch():
    targets_N, scores_NV = torch.arange(N) * 2, logits().requires_grad_()
    expected_N = functional.cross_entropy(scores_NV, targets_N, reduction="none")
    (slope_NV,) = torch.autograd.grad(expected_N.sum(), scores_NV)
    loss_N, found_NV = cross_entropy(Distribution.of(logits()), targets_N)
    torch.testing.assert_close(loss_N, expected_N)
    torch.testing.assert_close(found_NV, slope_NV)
