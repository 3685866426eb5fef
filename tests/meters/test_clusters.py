"""Intervals over sequences: where they lie, and how often they hold the truth."""

import numpy as np
import pytest
import torch
from scipy import stats

from compress.meters.clusters import clustered_mean, clustered_positive, clustered_share

DRAWS = 1500


def coverage(interval, truth, draw):
    """How often the interval of a draw ``[S, T]`` holds the truth."""
    held = 0
    for _ in range(DRAWS):
        values_ST = draw()
        num, length = values_ST.shape
        found = interval(torch.from_numpy(values_ST).flatten(), torch.arange(num).repeat_interleave(length))
        held += found.low <= truth <= found.high
    return held / DRAWS


@pytest.mark.parametrize(
    ("share", "num", "alike"), [(0.6, 8, 0.05), (0.9, 16, 0.02), (0.98, 16, 0.005), (0.98, 64, 0.02)]
)
def test_a_share_s_interval_holds_the_truth_as_often_as_it_says(share, num, alike):
    """Sequences differ: their shares are Beta distributed, with a correlation of `alike` among tokens of one."""
    random, length = np.random.default_rng(0), 256
    first, second = (part * (1 - alike) / alike for part in (share, 1 - share))

    def draw():
        return random.random((num, length)) < random.beta(first, second, (num, 1))

    assert 0.93 <= coverage(clustered_share, share, draw) <= 0.97


def test_a_positive_figure_s_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)

    def draw():  # tokens are exponential around their sequence's mean
        return random.exponential(random.gamma(4.0, 0.25, (16, 1)), (16, 64))

    assert 0.93 <= coverage(clustered_positive, 1.0, draw) <= 0.97


def of_sequences(means, length=4):
    """Tokens of sequences that have these shares of ones."""
    values = [[float(place < mean * length) for place in range(length)] for mean in means]
    return torch.tensor(values).flatten(), torch.arange(len(means)).repeat_interleave(length)


@pytest.mark.parametrize("means", [[1, 1, 1, 0], [0, 0, 0, 1], [0.25, 1, 1, 1], [1, 1], [0, 0, 0]])
def test_a_share_s_interval_stays_between_0_and_1(means):
    found = clustered_share(*of_sequences(means))
    assert 0 <= found.low <= found.mean <= found.high <= 1 and found.low < found.high


def test_the_plain_interval_of_such_a_share_does_not():
    assert clustered_mean(*of_sequences([1, 1, 1, 0])).high > 1


def test_where_all_are_alike_more_sequences_say_more():
    few, many = (clustered_share(*of_sequences([1] * num)).low for num in (8, 64))
    assert 0.5 < few < many < 1


def test_a_positive_figure_s_interval_stays_above_0():
    values_N, sequence_N = torch.tensor([0.01, 0.01, 0.02, 3.0]), torch.arange(4)
    assert clustered_mean(values_N, sequence_N).low < 0 < clustered_positive(values_N, sequence_N).low
    nothing = clustered_positive(torch.zeros(4), sequence_N)
    assert (nothing.low, nothing.high) == (0, 0)


def test_the_interval_is_the_t_interval_of_sequences_of_equal_length():
    means = [0.5, 1.5, 1.0, 4.0]
    values_N = torch.tensor([x + d for x in means for d in (-0.1, 0.1)])
    estimate = clustered_mean(values_N, torch.arange(4).repeat_interleave(2))
    low, high = stats.t.interval(0.95, 3, loc=1.75, scale=stats.sem(means))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((1.75, low, high))


@pytest.mark.parametrize("interval", [clustered_mean, clustered_positive, clustered_share])
def test_one_sequence_has_no_interval(interval):
    found = interval(*of_sequences([0.5]))
    assert (found.mean, found.low, found.high) == (0.5, None, None)
