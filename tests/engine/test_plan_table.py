"""The plan as text: what it says of memory, time and money."""

import pytest

from compress.engine.plan_table import plan_table
from compress.engine.store import Store
from compress.pipeline.plan import Node, Plan
from compress.records import ModelSpec, Work
from compress.train.step import Config

SPEC = ModelSpec(config={}, tensors={}, num_parameters=1)


def model(name="taught", **work):
    return Node(
        name=name,
        use="train",
        role="student",
        kind="hf",
        key=name,
        config=Config(tokens=4096),
        spec=SPEC,
        work=Work(**work),
    )


def test_what_is_launched_shows_the_memory_of_a_card_and_the_price_of_all(tmp_path, monkeypatch):
    for module in ("rates", "plan_table"):
        monkeypatch.setattr(f"compress.engine.{module}.device_class", lambda: "NVIDIA H100")
    an_hour_of_all = 1.5e14 * 3600 * 16
    node = model(flops=an_hour_of_all, peak_memory_bytes=8 << 30, devices=16)
    text = plan_table(Plan(nodes=(node,)), "mine", Store(tmp_path), usd_per_hour=3.5)
    assert "GiB on each of 16 cards" in text and "~1 h 00 min" in text and "~$56.00" in text
    assert text.splitlines()[-1] == "about 1 h 00 min of work, about $56.00"


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ({"disk_bytes": 1 << 60}, "`compress run` would refuse: the run will write"),
        ({"peak_memory_bytes": 1 << 60}, "`compress run` would refuse: step 'taught' needs about"),
    ],
)
def test_the_plan_says_where_run_would_refuse_for_want_of_room(work, said, tmp_path):
    text = plan_table(Plan(nodes=(model(**work),)), "mine", Store(tmp_path / "not there yet"))
    assert said in text and not (tmp_path / "not there yet").exists()
    assert "refuse" not in plan_table(Plan(nodes=(model(),)), "mine", Store(tmp_path))
