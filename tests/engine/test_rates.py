"""What the plan's times are learned from, and what teaches nothing."""

import pytest

from compress.engine.rates import Rates
from compress.machine import Machine
from compress.pipeline.plan import Node
from compress.plugins import StepConfig
from compress.records import Work


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr("compress.machine.this_machine", Machine)


def node(flops, devices=1):
    return Node(
        name="taught",
        use="train",
        role="student",
        kind="hf",
        key="k",
        config=StepConfig(),
        work=Work(flops=flops, devices=devices),
    )


def test_a_long_run_teaches_how_fast_the_machine_is(tmp_path):
    Rates(tmp_path).learn(node(2e11), seconds=20.0)
    assert Rates(tmp_path).seconds(node(1e12)) == pytest.approx(100.0)


def test_a_run_of_a_second_is_mostly_start_and_makes_no_estimate_longer(tmp_path):
    rates = Rates(tmp_path)
    before = rates.seconds(node(1e12))
    rates.learn(node(1e8), seconds=1.0)
    assert Rates(tmp_path).seconds(node(1e12)) == before


def test_a_short_run_that_is_faster_than_believed_teaches_at_least_that(tmp_path):
    rates = Rates(tmp_path)
    rates.learn(node(4e11), seconds=1.0)
    assert Rates(tmp_path).seconds(node(1e12)) == pytest.approx(2.5)


def test_of_work_without_an_estimate_a_short_run_says_how_long_it_takes(tmp_path):
    Rates(tmp_path).learn(node(0.0), seconds=0.5)
    assert Rates(tmp_path).seconds(node(0.0)) == 0.5


def test_cards_share_the_time_and_the_speed_learned_is_that_of_one(tmp_path):
    rates = Rates(tmp_path)
    assert rates.seconds(node(1.6e13, devices=16)) == pytest.approx(10.0)
    rates.learn(node(1.6e14, devices=16), seconds=50.0)
    assert Rates(tmp_path).seconds(node(1e12)) == pytest.approx(5.0)
