import pytest
import torch

from compress.errors import StepFailed
from compress.prune.elimination import elimination_costs
from compress.prune.least_squares import Moments, damped_inverse, refit

CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def problem(seed=0, tokens=60, inputs=10, outputs=7, rank=None):
    """Inputs x ``[N, I]`` with a mean, wanted outputs y ``[N, O]``, and weights to start from ``[O, I]``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(tokens, inputs) if rank is None else normal(tokens, rank) @ normal(rank, inputs)
    return x + 0.5, normal(tokens, outputs) + 2.0, normal(outputs, inputs)


def sums(x, y, dtype=torch.float64):
    moments = Moments(x.shape[1], y.shape[1], device="cpu", dtype=dtype)
    for part in (slice(0, 7), slice(7, None)):
        moments.add(x[None, part], y[None, part])
    return moments


def fitted(x, y, start, damping):
    moments = sums(x, y)
    return refit(start, moments.gram, moments.cross, damped_inverse(moments.gram, damping))


def test_without_damping_it_is_the_least_squares_solution_on_the_data():
    x, y, start = problem()
    expected = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(fitted(x, y, start, 1e-13), expected, **CLOSE)


@pytest.mark.parametrize("tokens", [60, 5])
def test_damping_is_the_price_of_moving_away_from_the_start(tokens):
    x, y, start = problem(tokens=tokens)
    strength = 0.3 * x.square().sum(0).mean()
    stays = strength.sqrt() * torch.eye(10, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([x, stays]), torch.cat([y, stays @ start.T])).solution.T
    torch.testing.assert_close(fitted(x, y, start, 0.3), expected, **CLOSE)


def test_a_pruned_map_folds_what_went_into_what_stays():
    x, _, whole = problem()
    kept = [0, 2, 3, 5, 6, 7, 8]
    gone = [1, 4, 9]
    gram = x.T @ x
    folding = whole[:, gone] @ gram[gone][:, kept] @ torch.linalg.inv(gram[kept][:, kept])
    found = fitted(x[:, kept], x @ whole.T, whole[:, kept], 1e-13)
    torch.testing.assert_close(found, whole[:, kept] + folding, **CLOSE)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damping", [0.0, 1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shape", [{}, {"tokens": 4}, {"rank": 3}, {"tokens": 11}], ids=str)
def test_the_error_on_the_data_never_rises(seed, damping, shape):
    x, y, start = problem(seed, **shape)
    x[:, 3] = 0  # an input that is never used

    def error(weight):
        return float((y - x @ weight.T).square().sum())

    assert error(fitted(x, y, start, damping)) <= error(start) * (1 + 1e-6)


def test_what_already_fits_stays_as_it_is():
    x, _, start = problem(tokens=5)
    torch.testing.assert_close(fitted(x, x @ start.T, start, 1e-3), start, rtol=1e-12, atol=1e-12)


def test_weights_of_inputs_that_are_never_used_stay_as_they_are():
    x, y, start = problem()
    x[:, [2, 6]] = 0
    assert torch.equal(fitted(x, y, start, 1e-4)[:, [2, 6]], start[:, [2, 6]])


def test_deviations_from_the_means_fit_a_map_with_a_bias():
    x, y, start = problem()
    moments = sums(x, y)
    gram, cross = moments.centered()
    weight = refit(start, gram, cross, damped_inverse(gram, 1e-13))
    bias = (moments.sum_y - weight @ moments.sum_x) / moments.num_tokens
    both = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1, dtype=x.dtype)], 1), y).solution
    torch.testing.assert_close(weight, both[:-1].T, **CLOSE)
    torch.testing.assert_close(bias, both[-1], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_of_narrow_numbers_are_kept_in_32_bits_at_least(dtype):
    x, y, _ = (t.to(dtype) for t in problem(tokens=500))
    moments = sums(x, y, dtype)
    assert moments.gram.dtype == torch.float32 and moments.num_tokens == 500
    torch.testing.assert_close(moments.gram.double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    gram = torch.eye(3)
    gram[1, 2] = bad
    with pytest.raises(StepFailed, match="NaN or infinite"):
        damped_inverse(gram, 1e-2)


@pytest.mark.parametrize("count", [20, 200])
def test_what_others_can_predict_goes_first_however_active_it_is(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, count, generator=generator, dtype=torch.float64)
    weight = torch.randn(30, count, generator=generator, dtype=torch.float64)
    x[:, 7] = 10 * (x[:, 3] + x[:, 4])
    weight[:, 9] = 0
    costs = elimination_costs(x.T @ x / 2000, weight.T @ weight, 1, 1e-9)
    assert set(costs.argsort()[:2].tolist()) <= {3, 4, 7, 9} and 9 in costs.argsort()[:2]
    assert float(costs.sort().values[1]) < 1e-6 < float(costs.sort().values[2])
    assert len(set(costs.tolist())) == count  # every unit has a rank of its own
    assert float(costs.max()) == pytest.approx(1.0, rel=0.05)
