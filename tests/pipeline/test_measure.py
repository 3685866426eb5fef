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


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            "{of: perplexty, margin: 5%}",
            "called 'perplexty'; did you mean 'perplexity'.* Allowed: accuracy, mean_acc",
        ),
        ("{of: tokens_per_second, margin: 5%}", "has no interval .* did you mean 'time_per_output_token'"),
        ("{of: time_per_output_token, at_most: 5}", "takes no at_most.*Allowed: margin"),
        (
            "{of: kl_divergence, margin: 0.1}",
            "takes no margin: it is about the original already. Allowed: at_most",
        ),
        ("{of: accuracy, margin: 5%}", "write 0.03 for three points"),
        (
            "{of: accuracy, task: world_fact, margin: 0.05}",
            "'world_fact' is none of .* did you mean 'world_facts'",
        ),
        (
            "{of: exact_mach, task: world_facts, margin: 0.05}",
            "no task declares.*; did you mean 'exact_match'",
        ),
        ("{of: perplexity, task: world_text, margin: 5%}", "'perplexity' is of no task: leave"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_refused_with_the_nearest(plan, limit, message):
    with pytest.raises(InputError, match=rf"p.yaml:\d+:\d+: gates: limits: .*{message}"):
        plan(STEPS.replace("MEASURE", ""), f"gates:\n  limits:\n    - {limit}\n")


def test_a_text_has_no_right_answers(plan, monkeypatch):
    monkeypatch.setattr("tests.pipeline.test_measure.PIPELINE", PIPELINE.replace("world_facts", "world_text"))
    with pytest.raises(InputError, match="'world_text' has no right answers to count"):
        plan(
            STEPS.replace("MEASURE", ""), "gates: {limits: [{of: accuracy, task: world_text, margin: 0.1}]}\n"
        )


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("{of: accuracy, task: world_facts, margin: 0.05}", "quality"),
        ("{of: exact_match, task: world_facts, at_least: 0.05}", "quality"),
        ("{of: perplexity, margin: 5%}", "divergence"),
        ("{of: time_per_output_token, margin: -20%}", "latency"),
        ("{of: peak_memory, at_most: 1e9}", "memory"),
    ],
)
def test_a_limit_needs_what_it_judges(plan, limit, what):
    gates = f"gates: {{limits: [{limit}]}}\n"
    with pytest.raises(InputError, match=f"measure leaves out {what}, which gates: limits: .* judges"):
        plan(STEPS.replace("MEASURE", f", measure: {sorted(ALL - {what})}"), gates)
    plan(STEPS.replace("MEASURE", f", measure: [{what}]"), gates)


def test_a_size_is_always_known_and_a_ratio_of_times_needs_rounds(plan):
    nothing = STEPS.replace("MEASURE", ", measure: []")
    plan(nothing, "gates: {limits: [{of: disk_bytes, at_most: 1e9}, {of: parameters, margin: -10%}]}\n")
    times = "gates: {limits: [{of: time_per_output_token, margin: 5%}]}\nprofile: {repeats: 2}\n"
    with pytest.raises(InputError, match="needs 3 rounds to have an interval; profile: repeats is 2"):
        plan(STEPS.replace("MEASURE", ""), times)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("{of: perplexity}", "expected exactly one of at_most, at_least and margin; found none"),
        ("{of: perplexity, margin: 5%, at_most: 3}", "found at_most and margin"),
        ("{of: perplexity, margin: five}", "margin"),
    ],
)
def test_a_limit_is_one(plan, limit, message):
    with pytest.raises(InputError, match=message):
        plan(STEPS.replace("MEASURE", ""), f"gates: {{limits: [{limit}]}}\n")


def test_perplexity_is_not_judged_of_other_tokens(plan):
    cut = "  - {name: cut, use: prune.vocab, target: {tokens: 250}, align: 1}\n"
    last = cut + "  - {name: last, use: quantize.rtn, bits: 8, group_size: 64}\n"
    with pytest.raises(
        InputError, match=r"not measured of 'last': 'cut' gave it other tokens .* bits_per_byte"
    ):
        plan(last, "gates: {limits: [{of: perplexity, margin: 5%}]}\n")
    assert plan(last, "gates: {limits: [{of: bits_per_byte, margin: 5%}]}\n").nodes


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
