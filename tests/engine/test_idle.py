"""Cards that are paid for and wait."""

import pytest

from compress.engine.idle import idle_remark
from compress.engine.rates import Rates
from compress.machine import Machine
from compress.pipeline.plan import Node
from compress.plugins import StepConfig
from compress.records import Work
from compress.speed import PROCESSOR_START


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr("compress.machine.this_machine", Machine)
    monkeypatch.setattr("compress.engine.rates.this_machine", Machine)


def node(name, hours, devices=1):
    work = Work(serial_seconds=hours * 3600 - PROCESSOR_START, devices=devices)
    return Node(name=name, use="train", role="student", kind="hf", key=name, config=StepConfig(), work=work)


def test_cards_that_wait_for_the_rest_of_the_plan_are_told_with_their_price(tmp_path):
    nodes = [node("before", 1.5), node("recover", 10, devices=8), node("after", 0.5)]
    [line] = idle_remark(nodes, Rates(tmp_path), usd_per_hour=3.0)
    assert "'recover' works on 8 devices" in line and "takes 2 h 00 min on fewer" in line
    assert "14 h 00 min of one, $42.00" in line
    assert "$" not in idle_remark(nodes, Rates(tmp_path), None)[0]


@pytest.mark.parametrize(
    "nodes",
    [[], [node("alone", 10)], [node("short", 0.1), node("recover", 100, devices=8)]],
    ids=["nothing to do", "one device", "little"],
)
def test_nothing_is_said_where_no_card_waits_long(nodes, tmp_path):
    assert idle_remark(nodes, Rates(tmp_path), 3.0) == []
