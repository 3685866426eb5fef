"""The contract of every file in `compress/distill/losses`.

Shapes: N tokens, V vocabulary.
"""

import math

import pytest
import torch

from compress import plugins
from compress.distill.divergences import chosen, named
from compress.train.distribution import Distribution

NAMES = plugins.available("distill.losses")
SETTINGS = {
    "mixture": {"of": [{"use": "forward_kl", "weight": 0.7}, {"use": "jsd", "beta": 0.2, "weight": 0.3}]}
}
"""Of those that have none by default."""
OF_SECOND_ORDER = set(NAMES) - {"total_variation"}
N, V = 5, 13


def setting(name: str, **settings):
    return {"use": name, **SETTINGS.get(name, {}), **settings}


@pytest.fixture(params=NAMES)
def divergence(request):
    return values(named(setting(request.param)))


def values(divergence):
    """As a function of logits, without its gradient."""
    return lambda student_NV, teacher_NV: divergence(
        Distribution.of(student_NV), Distribution.of(teacher_NV)
    )[0]


def logits(seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(share: float, p: list[float], q: list[float]) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def jsd(beta: float, p: list[float], q: list[float]) -> float:
    return beta * kl(p, mixed(beta, p, q)) + (1 - beta) * kl(q, mixed(beta, p, q))


SLOW = {
    "forward_kl": ({}, kl),
    "reverse_kl": ({}, lambda p, q: kl(q, p)),
    "jsd": ({"beta": 0.3}, lambda p, q: jsd(0.3, p, q)),
    "skew_kl": ({"alpha": 0.2}, lambda p, q: kl(p, mixed(0.2, p, q))),
    "total_variation": ({}, lambda p, q: math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2),
    "mixture": ({}, lambda p, q: 0.7 * kl(p, q) + 0.3 * jsd(0.2, p, q)),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_divergence_is_the_sum_in_its_definition(name):
    settings, formula = SLOW[name]
    student_NV, teacher_NV = logits(0), logits(1)
    pairs = zip(map(softmax, teacher_NV.tolist()), map(softmax, student_NV.tolist()), strict=True)
    expected_N = torch.tensor([formula(p, q) for p, q in pairs], dtype=torch.float64)
    found_N = values(named(setting(name, **settings)))(student_NV, teacher_NV)
    torch.testing.assert_close(found_N, expected_N)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_value(name):
    """By central differences of fp64 values."""
    divergence = named(setting(name))
    student_NV, teacher_NV = logits(0), logits(1)
    _, slope_NV = divergence(Distribution.of(student_NV), Distribution.of(teacher_NV))
    value, step = values(divergence), 1e-6
    for token in range(V):
        moved_NV = torch.zeros_like(student_NV)
        moved_NV[:, token] = step
        rise_N = value(student_NV + moved_NV, teacher_NV) - value(student_NV - moved_NV, teacher_NV)
        torch.testing.assert_close(slope_NV[:, token], rise_N / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_divergence_is_given_is_left_as_it_was(name):
    student, teacher = Distribution.of(logits(0)), Distribution.of(logits(1))
    named(setting(name))(student, teacher)
    for found, scores_NV in ((student, logits(0)), (teacher, logits(1))):
        assert torch.equal(found.logits, scores_NV) and torch.equal(found.probs, scores_NV.softmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_equal_models_diverge_by_zero_and_have_no_gradient(name):
    loss_N, slope_NV = named(setting(name))(Distribution.of(logits(0)), Distribution.of(logits(0)))
    assert loss_N.shape == (N,) and float(loss_N.abs().max()) < 1e-14
    assert float(slope_NV.abs().max()) < 1e-15


def test_different_models_diverge_by_more_than_zero(divergence):
    assert (divergence(logits(0), logits(1)) > 0).all()


def test_a_constant_added_to_logits_changes_nothing(divergence):
    moved_N = divergence(logits(0) + 5, logits(1) - 7)
    torch.testing.assert_close(moved_N, divergence(logits(0), logits(1)))


@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_close_to_fp64_even_for_extreme_logits(name):
    divergence = named(setting(name))
    student_NV, teacher_NV = logits(0, scale=40), logits(1, scale=40)
    single = divergence(Distribution.of(student_NV.float()), Distribution.of(teacher_NV.float()))
    double = divergence(Distribution.of(student_NV), Distribution.of(teacher_NV))
    for ours, theirs in zip(single, double, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


HALVES = {"forward_kl": 1.0, "reverse_kl": 1.0, "jsd": 0.25, "skew_kl": 0.81, "mixture": 0.7 + 0.3 * 0.16}
"""The curvature where both models are equal, KL's being 1: beta (1 - beta) of a JSD, (1 - alpha)² of a skew KL."""


@pytest.mark.parametrize("name", sorted(OF_SECOND_ORDER))
def test_scaled_by_its_square_a_high_temperature_tends_to_the_logits_mean_square_distance(name):
    """Hinton et al. 2015, Eq. 4, for logits without their mean."""
    student_NV, teacher_NV = logits(0), logits(1)
    T = 1e4
    distance_NV = (student_NV - student_NV.mean(-1, True)) - (teacher_NV - teacher_NV.mean(-1, True))
    limit_N = HALVES[name] * distance_NV.square().mean(-1) / 2
    found_N = T**2 * values(named(setting(name)))(student_NV / T, teacher_NV / T)
    torch.testing.assert_close(found_N, limit_N, rtol=2e-3, atol=0)


def test_total_variation_is_never_above_one():
    assert (values(named("total_variation"))(logits(0, 100.0), logits(1, 100.0)) <= 1).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("forward_lk", "no divergence is called 'forward_lk'; did you mean 'forward_kl'"),
        ({"beta": 0.1}, "`use` says which divergence"),
        ({"use": "jsd", "betta": 0.1}, "'betta' is not a key of jsd; did you mean 'beta'"),
        ({"use": "jsd", "beta": 1.5}, "jsd.beta: must be less than 1, found 1.5"),
        ({"use": "forward_kl", "beta": 1}, "'beta' is not a key of forward_kl: it has no settings"),
        ({"use": "mixture", "of": []}, "mixture.of needs 1 or more entries"),
        ({"use": "mixture", "of": [{"use": "jds"}]}, "no divergence is called 'jds'"),
        ({"use": "mixture", "of": [{"use": "jsd", "weight": 0}]}, "`weight` must be a number above 0"),
        ({"use": "mixture", "of": [{"use": "jsd", "weight": math.inf}]}, "`weight` must be a number above 0"),
        ({"use": "mixture", "of": [{"use": "jsd", "weight": math.nan}]}, "`weight` must be a number above 0"),
        ({"use": "mixture", "of": [{"use": "jsd", "weight": 10**400}]}, "`weight` must be a number above 0"),
    ],
)
def test_a_wrong_setting_is_told_what_is_allowed(wrong, said):
    with pytest.raises(ValueError) as caught:
        chosen(wrong)
    assert said in str(caught.value)
