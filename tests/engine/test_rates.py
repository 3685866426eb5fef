"""What the plan's times are learned from, and what teaches nothing."""

import json

import pytest

from compress.engine.rates import Rates
from compress.machine import Card, Machine, planning_for
from compress.pipeline.plan import Node
from compress.plugins import StepConfig
from compress.records import Work
from compress.speed import CARD_START, CORE_FLOPS_PER_SECOND, PROCESSOR_START, SHARE_OF_PEAK

CORES = 2
SPEED = CORES * CORE_FLOPS_PER_SECOND
CARD = Card(
    name="H100",
    memory_bytes=85 * 10**9,
    bf16_flops_per_second=989e12,
    memory_bytes_per_second=3.35e12,
    link_bytes_per_second=4.5e11,
)


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr("compress.speed.usable_cores", lambda: CORES)
    monkeypatch.setattr("compress.machine.this_machine", Machine)
    monkeypatch.setattr("compress.engine.rates.this_machine", Machine)


def node(seconds=0.0, use="train", devices=1, **work):
    """A node estimated to take so long on this processor, beside its start."""
    flops = seconds * SPEED
    return Node(
        name="taught",
        use=use,
        role="student",
        kind="hf",
        key="k",
        config=StepConfig(),
        work=Work(flops=flops, devices=devices, **work),
    )


def test_before_anything_ran_the_estimate_stands(tmp_path):
    assert Rates(tmp_path).seconds(node(100)) == pytest.approx(100 + PROCESSOR_START)


def test_a_run_of_minutes_teaches_how_fast_the_machine_is(tmp_path):
    Rates(tmp_path).learn(node(50), seconds=100 + PROCESSOR_START)
    assert Rates(tmp_path).seconds(node(1000)) == pytest.approx(2000 + PROCESSOR_START)


def test_one_slow_run_of_seconds_teaches_nothing_and_a_second_one_does(tmp_path):
    rates = Rates(tmp_path)
    rates.learn(node(10), seconds=30 + PROCESSOR_START)
    assert rates.seconds(node(10)) == pytest.approx(10 + PROCESSOR_START)
    rates.learn(node(10), seconds=30 + PROCESSOR_START)
    assert rates.seconds(node(10)) == pytest.approx(30 + PROCESSOR_START)


def test_one_fast_run_is_believed_at_once(tmp_path):
    rates = Rates(tmp_path)
    rates.learn(node(10), seconds=5 + PROCESSOR_START)
    assert rates.seconds(node(100)) == pytest.approx(50 + PROCESSOR_START)


@pytest.mark.parametrize("slow_one", range(5))
def test_one_run_on_a_busy_machine_spoils_nothing_whenever_it_comes(slow_one, tmp_path):
    rates = Rates(tmp_path)
    for run in range(5):
        busy = 10 if run == slow_one else 1
        rates.learn(node(10), seconds=busy * 12 + PROCESSOR_START)
        rates.learn(node(0.001, use="quantize.rtn"), seconds=busy * 0.05)
    assert rates.seconds(node(10)) == pytest.approx(12 + PROCESSOR_START)
    assert rates.seconds(node(0.001, use="quantize.rtn")) == pytest.approx(0.05, abs=0.01)


def test_a_trivial_run_that_waited_long_makes_no_large_work_longer(tmp_path):
    rates = Rates(tmp_path)
    for _ in range(5):
        rates.learn(node(0.001), seconds=52)
    assert rates.seconds(node(0.001)) == pytest.approx(52, rel=0.01)
    assert rates.seconds(node(3600)) == pytest.approx(3652, rel=0.01)


def test_of_work_without_an_estimate_a_run_says_how_long_it_takes(tmp_path):
    assert Rates(tmp_path).seconds(node()) is None
    Rates(tmp_path).learn(node(), seconds=0.5)
    assert Rates(tmp_path).seconds(node()) == 0.5


def test_what_is_learned_here_is_not_believed_of_another_machine(tmp_path):
    rates = Rates(tmp_path)
    rates.learn(node(50), seconds=500)
    rates.learn(node(), seconds=7)
    with planning_for(Machine(card=CARD, num_cards=1)):
        work = Work(flops=3600 * SHARE_OF_PEAK * CARD.bf16_flops_per_second)
        asked = node().model_copy(update={"work": work})
        assert rates.seconds(asked) == pytest.approx(3600 + CARD_START)
        assert rates.seconds(node()) is None


def test_devices_share_the_work_but_not_what_is_serial_and_the_speed_learned_is_that_of_one(tmp_path):
    rates = Rates(tmp_path)
    assert rates.seconds(node(160, devices=16)) == pytest.approx(10 + PROCESSOR_START)
    assert rates.seconds(node(160, devices=16, serial_seconds=5)) == pytest.approx(15 + PROCESSOR_START)
    rates.learn(node(1600, devices=16), seconds=300 + PROCESSOR_START)
    assert Rates(tmp_path).seconds(node(100)) == pytest.approx(300 + PROCESSOR_START)


def test_what_older_versions_learned_is_dropped(tmp_path):
    (tmp_path / "rates.json").write_text(json.dumps({"train on cpu": [1e9, 1e9]}))
    assert Rates(tmp_path).seconds(node(10)) == pytest.approx(10 + PROCESSOR_START)
    Rates(tmp_path).learn(node(10), seconds=6)
