import math
import random

import pytest
from scipy import stats

from compress.measure.statistics import (
    Interval,
    disagreements,
    mcnemar_exact,
    mean_interval,
    normal_interval,
    paired_difference_interval,
    ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("num_correct", "n"), [(0, 10), (10, 10), (7, 20), (263, 1000)])
def test_wilson_equals_scipys(num_correct, n):
    expected = stats.binomtest(num_correct, n).proportion_ci(method="wilson")
    interval = wilson_interval(num_correct, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert interval.low <= interval.value <= interval.high


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (5, 5), (40, 70)])
def test_mcnemar_equals_the_binomial_test(gained, lost):
    before, after = pairs(gained, lost, same=13)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_exact(before, after) == pytest.approx(expected)


def test_disagreements_are_counted_in_both_directions():
    assert disagreements(*pairs(gained=3, lost=2, same=4)) == (3, 2)


def test_the_paired_interval_is_that_of_the_formula():
    # (11 - 5) / 102 ± 1.95996 · sqrt((16 / 102 - (6 / 102)²) / 102)
    interval = paired_difference_interval(*pairs(gained=10, lost=4, same=86))
    assert interval.value == pytest.approx(0.06)
    assert (interval.low, interval.high) == pytest.approx((-0.01719, 0.13483), abs=1e-5)


def test_the_paired_interval_covers_the_truth_about_as_often_as_it_says():
    r = random.Random(0)
    covered = 0
    for _ in range(1000):
        draws = [r.random() for _ in range(120)]
        before = [draw < 0.70 for draw in draws]
        after = [draw < 0.66 or draw > 0.95 for draw in draws]
        interval = paired_difference_interval(before, after)
        covered += interval.low <= 0.01 <= interval.high
    assert 930 <= covered <= 985


def test_no_disagreement_still_leaves_a_width():
    interval = paired_difference_interval([True] * 50, [True] * 50)
    assert interval.value == 0.0
    assert interval.low < 0.0 < interval.high


def test_the_mean_of_one_estimate_is_itself():
    interval = Interval(0.4, 0.3, 0.6)
    mean = mean_interval([interval])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.4, 0.3, 0.6))


def test_widths_of_independent_estimates_add_in_squares():
    mean = mean_interval([Interval(0.5, 0.4, 0.6)] * 4)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.45, 0.55))


def test_the_normal_interval_of_a_mean():
    values = [1.0, 2.0, 3.0, 6.0]
    low, high = stats.norm.interval(0.95, loc=3.0, scale=stats.sem(values))
    interval = normal_interval(values)
    assert (interval.value, interval.low, interval.high) == pytest.approx((3.0, low, high))


def pairs(gained, lost, same):
    return [False] * gained + [True] * lost + [True] * same, [True] * gained + [False] * lost + [True] * same


def test_the_interval_of_a_ratio_is_students_of_the_logarithms():
    values, others = [1.1, 1.3, 1.2, 1.25, 1.15], [2.0, 2.1, 2.3, 1.9, 2.2]
    logs = [math.log(a / b) for a, b in zip(values, others, strict=True)]
    expected = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    interval = ratio_interval(values, others)
    assert interval.value == pytest.approx(1.2 / 2.1)
    assert (interval.low, interval.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))


def test_two_models_of_one_speed_are_told_apart_by_chance_in_one_run_of_twenty():
    rng, runs = random.Random(0), 2000
    told_apart = 0
    for _ in range(runs):
        drift = [math.exp(rng.gauss(0, 1)) for _ in range(5)]
        times, others = ([each * math.exp(rng.gauss(0, 0.3)) for each in drift] for _ in range(2))
        interval = ratio_interval(times, others)
        told_apart += not interval.low <= 1 <= interval.high
    assert 0.02 < told_apart / runs < 0.06


def test_one_pair_has_no_interval_and_an_interval_holds_its_value():
    assert ratio_interval([2.0], [1.0]) == Interval(2.0, 0.0, math.inf)
    uneven = ratio_interval([1.0, 1.0, 9.0, 9.0, 9.0], [1.0, 1.0, 9.0, 9.0, 1.0])
    assert uneven.low <= uneven.value <= uneven.high
