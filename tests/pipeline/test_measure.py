"""What a step leaves unmeasured, and what may not be left out."""

import pytest

from compress.digests import DigestMemo
from compress.errors import InputError
from compress.pipeline.json_schema import pipeline_schema
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.pipeline.source import read_source
from tests.pipeline.test_json_schema import accepts
from tests.pipeline.test_planner import PIPELINE

ALL = {"quality", "divergence", "latency", "memory"}
STEPS = """
  - {name: rounded, use: quantize.rtn, bits: 8, group_size: 64MEASURE}
"""


@pytest.fixture
def plan(tmp_path):
    def make(steps, more=""):
        path = tmp_path / "p.yaml"
        path.write_text(PIPELINE + steps + more)
        return make_plan(load_pipeline(path), DigestMemo(tmp_path / "memo.json"))

    return make


def measured(plan, name):
    return {node.name.partition("/")[2] for node in plan.measurements_of(name)}


@pytest.mark.parametrize(
    ("written", "expected"),
    [("", ALL), (", measure: [latency, memory]", {"latency", "memory"}), (", measure: []", set())],
)
def test_a_step_is_measured_as_it_says(plan, written, expected):
    made = plan(STEPS.replace("MEASURE", written))
    assert measured(made, "rounded") == expected
    assert measured(made, "original") == ALL


def test_what_is_measured_is_no_part_of_what_a_step_makes(plan):
    some, every = plan(STEPS.replace("MEASURE", ", measure: [memory]")), plan(STEPS.replace("MEASURE", ""))
    assert some["rounded"].key == every["rounded"].key
    assert some["rounded/memory"].key == every["rounded/memory"].key


def test_an_unknown_measurement_is_refused_by_its_place(plan):
    with pytest.raises(InputError, match=r"p\.yaml:\d+:\d+: steps\.rounded\.measure.*'speed'"):
        plan(STEPS.replace("MEASURE", ", measure: [speed]"))


@pytest.mark.parametrize(
    ("gate", "what"),
    [
        ("max_quality_drop: 0.1", "quality"),
        ("min_accuracy: 0.1", "quality"),
        ("max_kl_divergence: 1.0", "divergence"),
    ],
)
def test_a_gate_needs_what_it_judges(plan, gate, what):
    gates = f"gates: {{{gate}}}\n"
    with pytest.raises(
        InputError, match=f"step 'rounded': measure leaves out {what}, which gates: {gate.split(':')[0]}"
    ):
        plan(STEPS.replace("MEASURE", f", measure: {sorted(ALL - {what})}"), gates)
    plan(STEPS.replace("MEASURE", f", measure: [{what}]"), gates)
    between = (
        STEPS.replace("MEASURE", ", measure: []")
        + "  - {name: last, use: quantize.rtn, bits: 4, group_size: 64, from: original}\n"
    )
    with pytest.raises(InputError, match="step 'rounded'"):
        plan(between, gates)


def test_a_step_that_others_build_on_meets_no_gate(plan):
    first = (
        "  - {name: first, use: prune.depth, target: {layers: 1}, calibration: calibration, measure: []}\n"
    )
    steps = first + "  - {name: last, use: quantize.rtn, bits: 8, group_size: 64}\n"
    made = plan(steps, "gates: {min_accuracy: 0.1}\n")
    assert measured(made, "first") == set() and measured(made, "last") == ALL


def test_editors_know_the_key(tmp_path):
    path = tmp_path / "p.yaml"
    schema = pipeline_schema()
    for written, fits in (("[latency]", True), ("[]", True), ("[speed]", False), ("latency", False)):
        path.write_text(PIPELINE + STEPS.replace("MEASURE", f", measure: {written}"))
        assert bool(accepts(schema, read_source(path).data, schema)) == fits
