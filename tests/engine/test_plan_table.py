"""The plan as text: what it says of memory, time and money, and for which machine."""

import re

import pytest

from compress.engine.plan_table import plan_table
from compress.engine.store import Store
from compress.machine import Machine, machine_named, planning_for
from compress.pipeline.plan import Node, Plan
from compress.records import MemoryItem, ModelSpec, Work
from compress.train.launch import Launch
from compress.train.step import Config

SPEC = ModelSpec(config={}, tensors={}, num_parameters=1)
GB = 10**9


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr("compress.machine.this_machine", Machine)


def model(name="taught", launch=None, **work):
    return Node(
        name=name,
        use="train",
        role="student",
        kind="hf",
        key=name,
        config=Config(tokens=4096, launch=launch),
        spec=SPEC,
        work=Work(**work),
    )


def table(tmp_path, *nodes, device=None, usd_per_hour=None, assumed=()):
    plan = Plan(nodes=nodes, assumed=assumed)
    with planning_for(Machine() if device is None else machine_named(device)):
        return plan_table(plan, "mine", Store(tmp_path / "not there yet"), usd_per_hour)


def test_what_is_launched_shows_the_memory_of_a_card_and_the_price_of_all(tmp_path):
    node = model(flops=1e20, peak_memory_bytes=8 << 30, devices=16)
    text = table(tmp_path, node, device="16xh100-80gb", usd_per_hour=3.5)
    assert "~8.00 GiB on each of 16 cards" in text
    hours, minutes, dollars = re.search(r"about (\d+) h (\d+) min of work, about \$(.*)", text).groups()
    took = int(hours) + int(minutes) / 60
    assert float(dollars) == pytest.approx(16 * 3.5 * took, rel=0.01)


def test_without_a_price_there_are_hours_and_no_dollars(tmp_path):
    text = table(tmp_path, model(flops=1e20), device="h100-80gb")
    assert "of work" in text and "$" not in text


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ({"disk_bytes": 1 << 60}, "`compress run` would refuse: the run will write"),
        ({"peak_memory_bytes": 1 << 60}, "`compress run` would refuse: step 'taught' needs about"),
    ],
)
def test_the_plan_says_where_run_would_refuse_for_want_of_room(work, said, tmp_path):
    assert said in table(tmp_path, model(**work)) and not (tmp_path / "not there yet").exists()
    assert "refuse" not in table(tmp_path, model())


def test_the_plan_says_which_machine_it_is_for(tmp_path):
    assert table(tmp_path, model()).startswith("planned for this machine: a processor alone\n")
    said = table(tmp_path, model(), device="2xh200")
    assert said.startswith("planned for 2 cards h200, 140 GiB each: nothing is there yet")


def test_planned_for_another_machine_nothing_counts_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "__contains__", lambda store, key: True)
    assert "everything is in the store" in table(tmp_path, model())
    text = table(tmp_path, model(flops=1e20), device="h200")
    assert "to run" in text and "cached" not in text and "everything" not in text


def test_the_disk_of_another_machine_is_not_looked_at_but_what_is_written_is_told(tmp_path):
    text = table(tmp_path, model(disk_bytes=10**17), device="h200")
    assert "refuse" not in text and "it will write about 100000 TB to disk" in text


ITEMS = (
    MemoryItem(name="weights", num_bytes=16_138_400_000),
    MemoryItem(name="gradients", num_bytes=16_138_400_000),
    MemoryItem(name="moments", num_bytes=32_276_800_000),
)


def accounted(**more):
    total = sum(item.num_bytes for item in ITEMS)
    return model(peak_memory_bytes=total, memory=ITEMS, **more)


def test_the_account_of_memory_adds_up_as_it_is_printed(tmp_path):
    lines = table(tmp_path, accounted(), device="h100-80gb").splitlines()
    start = lines.index("memory of 'taught' (train) on the card, when it holds most:") + 1
    figures = [(float(line.split()[0]), line.split("GiB  ")[1]) for line in lines[start : start + 7]]
    (*items, total, card, driver, spare) = figures
    assert [name for _, name in items] == ["weights", "gradients", "moments"]
    assert total[1] == "in all" and sum(number for number, _ in items) == pytest.approx(total[0], abs=1e-9)
    assert card == (79.647, "has h100-80gb") and driver[1] == "of it its driver keeps"
    assert spare[0] == pytest.approx(card[0] - driver[0] - total[0], abs=1e-9)
    assert spare[1] == f"spare ({spare[0] / card[0]:.1%} of the card)"


def test_what_does_not_fit_the_card_is_refused_with_the_sum_and_what_would_make_it_fit(tmp_path):
    node = accounted(
        remedies=("`optimizer: adamw_8bit` saves 24.2 GB", "`teacher_precision: nf4` saves 10.6 GB")
    )
    text = table(tmp_path, node, device="a100-40gb")
    assert (
        "`compress run` would refuse: step 'taught' needs about 60.1 GiB on the card; a100-40gb gives a process "
        "39.2 GiB of its 40.0 GiB. What would take less: `optimizer: adamw_8bit` saves 24.2 GB; "
        "`teacher_precision: nf4` saves 10.6 GB." in text
    )
    assert "too much (" in text
    assert "refuse" not in table(tmp_path, node, device="h100-80gb")


def test_of_a_team_the_memory_is_that_of_each_card(tmp_path):
    text = table(tmp_path, accounted(devices=8), device="8xa100-40gb")
    assert "memory of 'taught' (train) on each of 8 cards" in text
    assert "needs about 60.1 GiB on each card" in text


def test_what_the_machine_holds_beside_its_card_is_told(tmp_path):
    text = table(tmp_path, accounted(host_memory_bytes=24 * GB), device="h100-80gb")
    assert "beside it the machine holds about 22.4 GiB" in text and "refuse" not in text


def test_every_step_that_does_not_fit_is_told(tmp_path):
    nodes = [model(name, peak_memory_bytes=99 * GB) for name in ("one", "two")]
    text = table(tmp_path, *nodes, device="h100-80gb")
    assert text.count("`compress run` would refuse: step '") == 2


def test_without_an_account_the_peak_alone_is_compared(tmp_path):
    text = table(tmp_path, model(peak_memory_bytes=99 * GB), device="h100-80gb")
    assert "memory of" not in text and "needs about 92.2 GiB on the card" in text


def test_work_of_the_processor_is_not_held_against_the_card(tmp_path):
    text = table(tmp_path, model(peak_memory_bytes=99 * GB, on_processor=True), device="h100-80gb")
    assert "refuse" not in text


def test_more_processes_than_cards_are_remarked_on(tmp_path):
    launched = model(launch=Launch(processes=8), devices=8)
    text = table(tmp_path, launched, device="2xh200")
    assert "step 'taught': `launch.processes: 8` needs as many cards on each machine; planned for 2" in text
    assert "launch.processes" not in table(tmp_path, launched, device="8xh200")


def test_what_was_not_looked_up_is_told_above_the_table(tmp_path):
    text = table(tmp_path, model(), assumed=("owner/model: its shape is as published",))
    assert "planned offline: nothing was looked up on the hub" in text
    assert text.index("  owner/model: its shape is as published") < text.index("parameters")


def test_an_account_on_a_processor_has_the_process_in_it_and_work_without_one_has_it_added(tmp_path):
    assert "~60.1 GiB " in table(tmp_path, accounted())
    assert "~1.39 GiB " in table(tmp_path, model(peak_memory_bytes=1 << 30))
