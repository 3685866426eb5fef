"""What every divergence needs of the original is one result, whatever is compared with it."""

from compress.digests import DigestMemo
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from tests.pipeline.test_planner import PIPELINE

STEPS = """
  - {name: rounded, use: quantize.rtn, bits: 8, group_size: 64}
  - {name: again, use: quantize.rtn, bits: 4, group_size: 64, from: original}
"""


def made(tmp_path, steps=STEPS, more="", **options):
    path = tmp_path / "p.yaml"
    path.write_text(PIPELINE + steps + more)
    return make_plan(load_pipeline(path), DigestMemo(tmp_path / "memo.json"), **options)


def test_all_divergences_share_it(tmp_path):
    for rehearsal in (False, True):
        plan = made(tmp_path, rehearsal=rehearsal)
        (states,) = [node for node in plan.nodes if node.use == "measure.last_states"]
        assert states.parent == "original" and states.role == "internal" and states.kind == "states"
        told = [node for node in plan.nodes if node.use == "measure.divergence"]
        assert len(told) == len(plan.models) >= 3
        for node in told:
            assert node.inputs["states"] == states.name
            assert node.inputs["text"] == states.inputs["text"]
            assert node.config.batch_size == states.config.batch_size


def test_it_is_made_only_where_a_divergence_is_missing(tmp_path):
    plan = made(tmp_path)
    there = {node.key for node in plan.nodes if node.use != "measure.latency"}
    assert {node.use for node in plan.missing(lambda node: node.key in there)} == {"measure.latency"}
    there = {node.key for node in plan.nodes if node.name not in ("again/divergence", "original/last_states")}
    names = [node.name for node in plan.missing(lambda node: node.key in there)]
    assert names == ["original/last_states", "again/divergence"]


def test_its_work_is_planned_once_with_the_original(tmp_path):
    plan = made(tmp_path)
    assert [node.name for node in plan.prepared_for("original")] == ["original/last_states"]
    assert all("last_states" not in node.name for m in ("rounded", "again") for node in plan.prepared_for(m))
    assert plan["original/last_states"].work.flops > 0


def test_a_plan_cut_short_keeps_it(tmp_path):
    cut = made(tmp_path).until("rounded")
    assert "original/last_states" in [node.name for node in cut.nodes]
