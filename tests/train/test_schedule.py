import math

import pytest
from pydantic import ValidationError

from compress.train.schedule import Schedule, batch_tokens
from compress.train.settings import TrainingSettings, rehearsed


def schedule(**settings) -> Schedule:
    return Schedule.of(TrainingSettings(**settings), sequence_length=10)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine_to_its_floor():
    plan = schedule(tokens=1100, batch_tokens=10, learning_rate=0.5, warmup=10 / 110, floor=0.1)
    rates = [plan.learning_rate(step) for step in range(plan.num_steps)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    falling = [0.05 + 0.45 * (1 + math.cos(math.pi * i / 99)) / 2 for i in range(100)]
    assert rates[10:] == pytest.approx(falling)
    assert max(rates) == 0.5 and rates[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_schedules_are_positive_and_never_above_the_peak(num_steps, warmup):
    plan = schedule(tokens=num_steps * 10, batch_tokens=10, warmup=warmup, learning_rate=1.0)
    rates = [plan.learning_rate(step) for step in range(plan.num_steps)]
    assert len(rates) == num_steps and all(0 < rate <= 1 for rate in rates)


def test_the_budget_becomes_whole_batches_of_whole_sequences():
    plan = schedule(tokens="1k", batch_tokens=64)
    assert (plan.batch_sequences, plan.num_steps, plan.num_tokens) == (6, 17, 1020)


def test_a_budget_below_one_sequence_is_one_step_of_one_sequence():
    assert schedule(tokens=1, batch_tokens=1).num_tokens == 10


@pytest.mark.parametrize(
    ("tokens", "batch"),
    [
        (100, 100),
        (2_048, 2_048),
        (3_000, 2_048),
        (100_000, 2_048),
        (100 * 10**6, 50_000),
        (94 * 10**9, 524_288),
    ],
)
def test_the_batch_grows_with_the_budget_within_bounds(tokens, batch):
    assert batch_tokens(tokens) == batch


@pytest.mark.parametrize("tokens", [10, 100, 1_000, 2_047, 2_048, 5_000, 100_000])
def test_a_budget_is_met_to_half_a_batch_whatever_its_size(tokens):
    plan = schedule(tokens=tokens)
    assert abs(plan.num_tokens - tokens) <= plan.batch_tokens / 2


def test_a_batch_larger_than_the_budget_is_refused_naming_both():
    with pytest.raises(
        ValidationError, match=r"'batch_tokens' \(1,000,000\) is more than 'tokens' \(100,000\)"
    ):
        schedule(tokens="100k", batch_tokens="1M")
    assert schedule(tokens="1M", batch_tokens="1M").num_steps == 1


def test_a_rehearsal_is_eight_small_steps_with_everything_else_as_set():
    settings = TrainingSettings(tokens="2B", learning_rate=3e-4, batch_tokens="1M", micro_batch=64)
    small = rehearsed(settings)
    plan = Schedule.of(small, sequence_length=64)
    assert (plan.num_steps, plan.batch_sequences) == (8, 4)
    assert small.learning_rate == 3e-4


@pytest.mark.parametrize(
    "wrong", [{"tokens": "a few"}, {"tokens": 1, "learning_rate": 0}, {"tokens": 1, "warmup": 2}, {}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainingSettings(**wrong)
