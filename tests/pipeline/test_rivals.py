"""Baselines of several steps, and the original in every candidate's runtime."""

import pytest

from compress.digests import DigestMemo
from compress.errors import InputError
from compress.pipeline.advice import advice
from compress.pipeline.json_schema import pipeline_schema
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.pipeline.source import read_source
from tests.pipeline.test_json_schema import accepts
from tests.pipeline.test_planner import PIPELINE

INT4 = "use: quantize.rtn, bits: 4, group_size: 64"
STEPS = f"""
  - {{name: narrow, use: prune.width, target: {{intermediate_size: 128}}}}
  - {{name: int4, {INT4}}}
  - {{name: edge, use: export.onnx}}
"""
CHAIN = f"baselines: [{{name: rival, steps: [{{{INT4}}}, {{use: export.onnx}}]}}]\n"


@pytest.fixture
def plan(tmp_path):
    def make(steps=STEPS, more="", rehearsal=False, original="intermediate_size: 192"):
        path = tmp_path / "p.yaml"
        path.write_text(PIPELINE.replace("intermediate_size: 192", original) + steps + more)
        return make_plan(load_pipeline(path), DigestMemo(tmp_path / "memo.json"), rehearsal)

    return make


def rivals(plan):
    return {node.name: node.rival_of for node in plan.models if node.role == "baseline"}


def test_a_chain_is_measured_at_its_end_only(plan):
    made = plan(more=CHAIN)
    assert made["rival"].kind == "onnx" and made["rival"].role == "baseline"
    first = made[made["rival"].parent]
    assert (first.use, first.parent, first.is_model) == ("quantize.rtn", "original", False)
    assert not made.measurements_of(first.name)
    assert {node.name for node in made.measurements_of("rival")} == {
        f"rival/{what}" for what in ("quality", "divergence", "latency", "memory")
    }


def test_a_chain_is_recorded_as_made_from_the_model_before_its_steps(plan):
    made = plan(more=CHAIN)
    assert made.model_before(made["rival"]) == "original"
    assert made.model_before(made["edge"]) == "int4"
    assert made.model_before(made["original"]) is None


def test_what_a_chain_makes_has_the_key_of_the_same_steps_written_out(plan):
    baselines = f"baselines: [{{name: q, {INT4}}}, {{name: rival, use: export.onnx, from: q}}]\n"
    assert plan(more=CHAIN)["rival"].key == plan(more=baselines)["rival"].key


def test_a_step_of_a_chain_that_is_there_already_is_not_made_twice(plan):
    made = plan(more=CHAIN.replace("[{name", f"[{{name: q, {INT4}}}, {{name", 1))
    assert made["rival"].parent == "q"
    assert sum(node.use == "quantize.rtn" and node.parent == "original" for node in made.nodes) == 1


def test_the_time_of_a_chains_steps_is_part_of_the_baselines(plan):
    made = plan(more=CHAIN)
    assert [node.name for node in made.prepared_for("rival")] == ["rival/1"]
    assert [node.name for node in made.prepared_for("edge")] == []


def test_a_step_of_a_chain_that_does_not_fit_is_refused_at_its_place(plan):
    with pytest.raises(
        InputError, match=r"p\.yaml:\d+:\d+: step 'rival': export.onnx needs hf or packed, but"
    ):
        plan(more="baselines: [{name: rival, steps: [{use: export.onnx}, {use: export.onnx}]}]\n")


def test_the_original_is_measured_in_the_runtime_of_every_candidate(plan):
    made = plan()
    assert rivals(made) == {"original_in_edge": ("edge",)}
    rival = made["original_in_edge"]
    assert rival.kind == "onnx" and made[rival.parent].parent == "original"
    for own, theirs in ((made["edge"], rival), (made["int4"], made[rival.parent])):
        assert own.config == theirs.config
    assert {node.name.partition("/")[2] for node in made.measurements_of("original_in_edge")} == {
        "quality", "divergence", "latency", "memory"
    }  # fmt: skip


def test_a_candidate_is_timed_beside_its_rival(plan):
    made = plan()
    assert made["edge/latency"].inputs == {"original": "original", "rival": "original_in_edge"}
    assert made["int4/latency"].inputs == {"original": "original"}
    assert made["original_in_edge/latency"].inputs == {"original": "original"}


def test_a_baseline_that_is_just_that_is_the_rival_and_none_is_added(plan):
    assert rivals(plan(more=CHAIN)) == {"rival": ("edge",)}


def test_another_baseline_is_no_such_rival(plan):
    eight = CHAIN.replace("bits: 4", "bits: 8")
    assert rivals(plan(more=eight)) == {"rival": (), "original_in_edge": ("edge",)}


def test_every_leaf_has_its_own(plan):
    more = "  - {name: int8, use: quantize.rtn, bits: 8, group_size: 64, from: narrow}\n"
    assert rivals(plan(STEPS + more)) == {"original_in_edge": ("edge",), "original_in_int8": ("int8",)}


def test_none_is_added_where_nothing_was_compressed_or_the_file_is_a_plain_checkpoint(plan):
    assert rivals(plan(f"  - {{name: int4, {INT4}}}\n  - {{name: edge, use: export.onnx}}\n")) == {}
    narrow = STEPS.splitlines()[1] + "\n"
    assert rivals(plan(narrow)) == {}


def test_an_option_turns_it_off(plan):
    made = plan(more="same_runtime_baselines: false\n")
    assert rivals(made) == {}
    assert made["edge/latency"].inputs == {"original": "original"}


def test_it_is_measured_as_the_candidate_is(plan):
    made = plan(STEPS.replace("use: export.onnx", "use: export.onnx, measure: [latency]"))
    assert [node.name for node in made.measurements_of("original_in_edge")] == ["original_in_edge/latency"]


def test_a_name_that_is_taken_is_left_alone(plan):
    taken = CHAIN.replace("rival", "original_in_edge").replace("bits: 4", "bits: 8")
    assert rivals(plan(more=taken)) == {"original_in_edge": (), "original_in_edge_": ("edge",)}


def test_where_the_steps_do_not_fit_the_original_the_plan_says_so_and_stands(plan):
    made = plan(original="intermediate_size: 200")
    assert rivals(made) == {}
    (remark,) = made.remarks
    assert remark.startswith("edge has no baseline in its own runtime: ")
    assert advice(made, done=frozenset())[0] == remark


def test_a_rehearsal_rehearses_it_too(plan):
    assert rivals(plan(rehearsal=True)) == {"original_in_edge": ("edge",)}


def test_the_schema_knows_chains(tmp_path):
    schema = pipeline_schema()

    def fits(text):
        (tmp_path / "a.yaml").write_text(PIPELINE + STEPS + text)
        return accepts(schema, read_source(tmp_path / "a.yaml").data, schema)

    assert fits(CHAIN) and fits(
        CHAIN.replace("name: rival", "name: rival, measure: [latency], from: original")
    )
    for wrong in ("bitz: 4", "name: x, bits: 4", "from: original"):
        assert not fits(CHAIN.replace("bits: 4", wrong))
    assert not fits("baselines: [{name: rival, steps: []}]\n")
    assert not fits(CHAIN.replace("name: rival", "name: rival, use: quantize.rtn"))
