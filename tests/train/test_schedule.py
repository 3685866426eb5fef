import math

import pytest
from pydantic import ValidationError

from compress.models.spec import read_spec
from compress.records import Artifact
from compress.train import step
from compress.train.schedule import Schedule, batch_tokens
from compress.train.settings import TrainingSettings, rehearsed
from tests.train.inputs import context, parent


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


@pytest.mark.parametrize(
    ("num_steps", "rising"), [(1, 0), (2, 0), (3, 1), (12, 4), (29, 9), (30, 10), (199, 10), (586, 29)]
)
def test_a_short_training_begins_below_the_peak_too(num_steps, rising):
    plan = schedule(tokens=num_steps * 10, batch_tokens=10)
    assert plan.num_steps == num_steps and plan.num_warmup_steps == rising
    if rising > 1:
        assert plan.learning_rate(0) == pytest.approx(plan.peak / rising)


def test_no_warmup_is_none_and_a_longer_one_is_kept():
    assert schedule(tokens=120, batch_tokens=10, warmup=0).num_warmup_steps == 0
    assert schedule(tokens=120, batch_tokens=10, warmup=0.5).num_warmup_steps == 6


def test_the_first_steps_of_a_short_training_do_not_undo_what_was_there(tmp_path):
    """A model that knows its text, trained on with a rate that a whole first step of AdamW would spoil it with."""
    folder = tmp_path / "result"
    base = step.Config(tokens=16 * 4 * 60, batch_tokens=16 * 4, learning_rate=3e-3, precision="fp32")
    step.run(parent(tmp_path / "parent"), base, context(folder))
    learned = Artifact(key="learned", kind="hf", path=folder, spec=read_spec(folder))
    worst = {}
    for name, warmup in (("without", 0.0), ("default", 0.05)):
        config = step.Config(
            tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-2, precision="fp32", warmup=warmup
        )
        outcome = step.run(learned, config, context(tmp_path / name / "result"))
        worst[name] = [point["loss"] for point in outcome.facts["curve"]]
    first = worst["default"][0]
    assert worst["default"][1] - first < 0.5 * (worst["without"][1] - first)
