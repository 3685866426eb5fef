"""Gates prove: what is called kept is kept, and what is called lost is lost."""

from types import SimpleNamespace

import numpy as np
import pytest

from compress.engine.gates import judge
from compress.measure.statistics import paired_difference_interval, wilson_interval
from compress.records import Measurement

DRAWS = 4_000


def result(limit=0.03, **measured):
    """The one gate on a leaf whose change of accuracy was measured so."""
    change = Measurement(
        name="mean_accuracy_change", unit="share", higher_is_better=True, **{"n": 400, **measured}
    )
    leaf = SimpleNamespace(name="edge", measurements=(change,))
    gates = SimpleNamespace(max_quality_drop=limit, min_accuracy=None, max_kl_divergence=None)
    (found,) = judge(SimpleNamespace(leaves=(leaf,)), gates)
    return found


def test_a_drop_inside_the_limit_with_its_whole_interval_is_kept():
    found = result(value=-0.01, low=-0.025, high=0.005)
    assert found.passed and found.finding == "kept"
    assert (found.measured, found.low, found.high) == (0.01, -0.005, 0.025)


def test_no_drop_seen_with_few_items_proves_nothing_and_says_how_many_would():
    found = result(value=0.0, low=-0.06, high=0.06)
    assert not found.passed and found.finding == "not enough items"
    assert found.enough_items == 400 * 4  # twice as narrow


def test_a_drop_past_the_limit_with_its_whole_interval_is_lost():
    found = result(value=-0.08, low=-0.11, high=-0.05)
    assert found.finding == "lost" and found.enough_items is None


def test_a_figure_past_the_limit_is_not_proved_by_any_number_of_items():
    found = result(value=-0.04, low=-0.08, high=0.0)
    assert found.finding == "not enough items" and found.enough_items is None


def test_accuracy_and_divergence_have_their_own_directions():
    accuracy = Measurement(
        name="mean_accuracy", value=0.8, unit="share", higher_is_better=True, low=0.76, high=0.84, n=300
    )
    kl = Measurement(
        name="kl_divergence", value=0.1, unit="nats/token", higher_is_better=False, low=0.08, high=0.12, n=64
    )
    leaf = SimpleNamespace(name="edge", measurements=(accuracy, kl))
    for minimum, most, findings in (
        (0.75, 0.13, ["kept", "kept"]),
        (0.85, 0.07, ["lost", "lost"]),
        (0.78, 0.11, ["not enough items", "not enough items"]),
    ):
        gates = SimpleNamespace(max_quality_drop=None, min_accuracy=minimum, max_kl_divergence=most)
        found = judge(SimpleNamespace(leaves=(leaf,)), gates)
        assert [each.finding for each in found] == findings
        assert [each.measured for each in found] == [0.8, 0.1]


def test_what_was_not_measured_has_not_passed():
    leaf = SimpleNamespace(name="edge", measurements=())
    gates = SimpleNamespace(max_quality_drop=0.1, min_accuracy=None, max_kl_divergence=None)
    (found,) = judge(SimpleNamespace(leaves=(leaf,)), gates)
    assert not found.passed and found.finding == "not measured" and found.measured is None


def answers(chance, n, lost_share, gained_share):
    """Pairs of answers of which so many are lost and gained on average, as counts turned into items."""
    lost, gained, _ = chance.multinomial(n, [lost_share, gained_share, 1 - lost_share - gained_share])
    before = [True] * lost + [False] * gained + [True] * (n - lost - gained)
    after = [False] * lost + [True] * gained + [True] * (n - lost - gained)
    return before, after


@pytest.mark.parametrize(("n", "lost", "gained"), [(100, 0.06, 0.03), (400, 0.10, 0.07), (400, 0.03, 0.0)])
def test_a_drop_at_the_limit_is_called_kept_or_lost_in_at_most_one_of_twenty_runs(n, lost, gained):
    chance = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        interval = paired_difference_interval(*answers(chance, n, lost, gained))
        found.append(result(0.03, value=interval.value, low=interval.low, high=interval.high, n=n).finding)
    assert found.count("kept") <= 0.05 * DRAWS
    assert found.count("lost") <= 0.05 * DRAWS


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_intervals_of_accuracy_hold_the_truth_in_nineteen_of_twenty_runs(share):
    chance = np.random.default_rng(1)
    intervals = [wilson_interval(int(right), 300) for right in chance.binomial(300, share, DRAWS)]
    assert 0.93 <= np.mean([i.low <= share <= i.high for i in intervals]) <= 0.97


@pytest.mark.parametrize(("lost", "gained"), [(0.1, 0.07), (0.06, 0.06), (0.2, 0.05)])
def test_intervals_of_paired_changes_hold_the_truth_in_nineteen_of_twenty_runs(lost, gained):
    chance = np.random.default_rng(2)
    truth = gained - lost
    intervals = [paired_difference_interval(*answers(chance, 300, lost, gained)) for _ in range(DRAWS)]
    assert 0.93 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.97
