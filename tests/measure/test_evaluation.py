"""lm-eval's own figures, as measurements."""

from types import SimpleNamespace

import pytest

from compress.measure.evaluation import _figure

SHARES = [1.0, 1.0, 0.9, 0.2, 1.0]


def figure(metric, values):
    task = SimpleNamespace(
        aggregation=lambda: {metric: lambda found: sum(found) / len(found)}, higher_is_better=dict
    )
    return _figure("mine", task, metric, "none", values)


@pytest.mark.parametrize("values", [SHARES, [1 - share for share in SHARES]])
def test_the_interval_of_a_graded_share_stays_between_0_and_1(values):
    found = figure("f1", values)
    assert found.unit == "share" and 0 <= found.low < found.value < found.high <= 1


def test_the_interval_of_a_plain_score_may_reach_anywhere():
    assert figure("likelihood_diff", [0.1, 5.0, 0.2]).low < 0
