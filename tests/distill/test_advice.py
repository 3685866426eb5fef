"""What the plan says of trainings that defeat their own purpose."""

import pytest

from compress.digests import DigestMemo
from compress.pipeline.advice import advice
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from tests.distill.test_cache_plan import NARROW, PIPELINE


@pytest.fixture
def told(tmp_path):
    def told(*steps):
        text = PIPELINE.replace(
            "  recovery:", "  same: {source: demo, sequence_length: 64, samples: 32}\n  recovery:"
        )
        file = tmp_path / "small.yaml"
        file.write_text(text.replace("SEED", "7") + "\n".join(f"  - {step}" for step in steps))
        return advice(make_plan(load_pipeline(file), DigestMemo(tmp_path / "digests")), set())

    return told


def step(use, **settings):
    return f"{{name: last, use: {use}, tokens: 500, {', '.join(f'{k}: {v}' for k, v in settings.items())}}}"


@pytest.mark.parametrize("use", ["train", "distill"])
def test_to_learn_what_is_measured_on_is_remarked_on(use, told):
    (line,) = told(NARROW, step(use, data="heldout"))
    assert "'last' learns from 'heldout', on which `evaluate.text` measures" in line
    assert told(NARROW, step(use, held_out="heldout")) == []


def test_so_it_is_in_tokens_of_another_vocabulary(told):
    pruned = "{name: few, use: prune.vocab, target: {tokens: 50%}, corpus: calibration}"
    (line,) = told(pruned, step("train", data="heldout"))
    assert "on which `evaluate.text` measures" in line


def test_to_learn_what_is_evaluated_on_under_another_name_is_remarked_on(told):
    (line,) = told(NARROW, step("train", held_out="same"))
    assert "learns from 'recovery' and evaluates on 'same', which hold the same" in line


def test_a_student_that_is_its_own_teacher_is_remarked_on(told):
    (line,) = told(step("distill"))
    assert "'last' starts from its own teacher, 'original'" in line and "the loss is 0" in line
    assert told(step("distill", label_weight=0.5)) == told(NARROW, step("distill")) == []
    (line,) = told(NARROW, step("distill", teacher="narrow"))
    assert "'narrow'" in line


@pytest.mark.parametrize("use", ["train", "distill"])
def test_a_stop_that_never_comes_is_remarked_on(use, told):
    watched = {"held_out": "heldout", "batch_tokens": 64, "evaluate_every": 0.25}
    (line,) = told(NARROW, step(use, **watched, stop_after=4))
    assert "`stop_after: 4` never stops 'last'" in line and "there are 4 more" in line
    assert told(NARROW, step(use, **watched, stop_after=3)) == []
    (line,) = told(NARROW, step(use, **{**watched, "batch_tokens": 250}, stop_after=2))
    assert "there are 2 more" in line  # of as many steps
