"""Cached teacher signals in a plan: made from the teacher, shared by its students, in no student's way."""

import pytest

from compress.digests import DigestMemo
from compress.errors import InputError
from compress.pipeline.advice import advice
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline

PIPELINE = """
version: 1
name: small
model:
  tokenizer: bytes
  config:
    {model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 32}
  recovery: {source: demo, split: train, sequence_length: 64, samples: 32}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
evaluate: {tasks: [world_facts], samples: 4}
seed: SEED
steps:
"""
NARROW = "{name: narrow, use: prune.width, target: {params: 80%}}"
SMALL = "{name: small, use: prune.width, target: {params: 60%}, from: original}"


def recover(name, of, **settings):
    keys = {"tokens": "4k", "cache_teacher": "true", **settings}
    return f"{{name: {name}, use: distill, from: {of}, {', '.join(f'{k}: {v}' for k, v in keys.items())}}}"


@pytest.fixture
def plan(tmp_path):
    def make(*steps, seed=7, rehearsal=False):
        file = tmp_path / "small.yaml"
        file.write_text(PIPELINE.replace("SEED", str(seed)) + "\n".join(f"  - {step}" for step in steps))
        return make_plan(load_pipeline(file), DigestMemo(tmp_path / "digests"), rehearsal)

    return make


def caches(plan):
    return [node for node in plan.nodes if node.use == "distill.cache_teacher"]


def test_the_teacher_is_asked_once_for_all_its_students(plan):
    made = plan(NARROW, recover("a", "narrow"), SMALL, recover("b", "small", learning_rate=1e-3))
    (signals,) = caches(made)
    assert (signals.name, signals.parent, signals.role) == ("original/cache_teacher", "original", "internal")
    assert signals.kind == "teacher_signals" and signals.inputs == {"data": "data/recovery"}
    assert made["a"].inputs == {"data": "data/recovery", "teacher": "original", "signals": signals.name}
    assert made["b"].inputs["signals"] == signals.name
    assert made.prepared_for("a") == (signals,) and made.prepared_for("b") == ()


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2},
        {"cache_teacher": "{top_k: 8}"},
        {"cache_teacher": "{tail: bucket}"},
        {"tokens": "1k"},
        {"attend_across_documents": "true"},
        {"teacher": "narrow"},
        {"data": "calibration"},
    ],
)
def test_what_changes_the_answers_changes_the_key(plan, change):
    made = plan(NARROW, recover("a", "narrow"), SMALL, recover("b", "small", **change))
    first, second = caches(made)
    assert first.key != second.key and made["b"].inputs["signals"] == second.name


def test_another_seed_samples_anew_and_another_run_finds_the_same(plan):
    steps = (NARROW, recover("a", "narrow"))
    keys = [caches(plan(*steps, seed=seed))[0].key for seed in (7, 7, 8)]
    assert keys[0] == keys[1] != keys[2]


def test_without_a_cache_nothing_is_prepared_and_the_teacher_counts(plan):
    online, cached = (
        plan(NARROW, recover("a", "narrow", cache_teacher=value))["a"] for value in ("false", "true")
    )
    assert set(online.inputs) == {"data", "teacher"}
    assert cached.work.flops < online.work.flops and cached.key != online.key


def test_a_student_of_another_vocabulary_is_refused_when_planned(plan):
    pruned = "{name: few, use: prune.vocab, target: {tokens: 50%}, corpus: calibration}"
    with pytest.raises(
        InputError, match=r"step 'a': .*cache_teacher makes of 'original'.* 'few' has another"
    ):
        plan(pruned, recover("a", "few"))
    plan(pruned, recover("a", "few", cache_teacher="false"))
    plan(pruned, recover("a", "few", teacher="few"))


def test_a_teacher_that_cannot_be_asked_is_refused_when_planned(plan):
    rounded = "{name: int8, use: quantize.bitsandbytes, bits: 8}"
    with pytest.raises(InputError, match="needs hf, but `teacher: int8` is bitsandbytes"):
        plan(rounded, recover("a", "original", teacher="int8"))


def test_a_rehearsal_asks_about_the_tiny_data(plan):
    (signals,) = caches(plan(NARROW, recover("a", "narrow"), rehearsal=True))
    assert signals.config.tokens is None and signals.config.most_tokens == 32 * 64


def test_trainings_that_read_all_of_the_data_share_whatever_their_length(plan):
    made = plan(
        NARROW, recover("a", "narrow", tokens="2k", batch_tokens=256), recover("b", "narrow", tokens="9k")
    )
    assert len(caches(made)) == 2  # 2,000 tokens are not all of 2,048
    made = plan(
        NARROW, recover("a", "narrow", tokens="3k", batch_tokens=256), recover("b", "narrow", tokens="9k")
    )
    (signals,) = caches(made)
    assert signals.work.disk_bytes == 130 * 32 * 64


WATCHED = {"held_out": "heldout", "held_out_rows": 4}


def test_all_students_of_a_teacher_are_measured_by_the_same_answers(plan):
    made = plan(
        NARROW,
        recover("a", "narrow", **WATCHED),
        SMALL,
        recover("b", "small", tokens="1k", cache_teacher="{tail: bucket}", **WATCHED),
        recover("c", "small", held_out="heldout", held_out_rows=2),
    )
    first, held_out, second, fewer = caches(made)
    for name, of_training, of_held_out in (
        ("a", first, held_out),
        ("b", second, held_out),
        ("c", first, fewer),
    ):
        assert made[name].inputs["signals"] == of_training.name
        assert made[name].inputs["held_out_signals"] == of_held_out.name
    assert held_out.inputs == {"data": "data/heldout"} and held_out.parent == "original"
    assert (held_out.config.first_rows, held_out.config.samples, fewer.config.first_rows) == (4, 64, 2)
    assert held_out.work.disk_bytes == 250 * 8 * 64, "at most all eight rows"


def test_held_out_text_is_asked_about_anew_only_for_other_answers(plan):
    def key(**settings):
        made = plan(NARROW, recover("a", "narrow", **{**WATCHED, **settings}))
        return made[made["a"].inputs["held_out_signals"]].key

    assert key() == key(learning_rate=1e-3) == key(label_weight=0.5) == key(cache_teacher="{top_k: 8}")
    changes = (
        {"held_out_rows": 5},
        {"temperature": 2},
        {"attend_across_documents": "true"},
        {"teacher": "narrow"},
    )
    assert len({key(), *(key(**change) for change in changes)}) == 5


def test_a_rehearsal_asks_about_four_held_out_rows(plan):
    made = plan(NARROW, recover("a", "narrow", held_out="heldout"), rehearsal=True)
    assert made[made["a"].inputs["held_out_signals"]].config.first_rows == 4


ALL = 32 * 64
"""The tokens of the data."""


def told(plan, done=()):
    return advice(plan, set(done))


def test_the_plan_says_when_a_cache_pays_and_how_much(plan):
    again = {"cache_teacher": "false", "tokens": 4 * ALL}
    made = plan(NARROW, recover("a", "narrow", **again), SMALL, recover("b", "small", **again))
    (line,) = told(made)
    teacher, reads = made["original"].spec.num_parameters, 8 * ALL
    share = 2 * teacher * (reads - ALL) / (made["a"].work.flops + made["b"].work.flops)
    assert f"about {share:.0%} of the work of 'a' and 'b'" in line and "8.0 times" in line
    assert told(made, [made["a"].key, made["b"].key]) == []
    (line,) = told(made, [made["a"].key])
    assert "work of 'b'" in line and "4.0 times" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": ALL},
        {"cache_teacher": "true"},
        {"divergence": "reverse_kl"},
        {"hidden_weight": 0.1},
        {"label_weight": 1},
    ],
    ids=str,
)
def test_it_says_nothing_where_a_cache_saves_nothing_or_cannot_be(settings, plan):
    online = {"cache_teacher": "false", "tokens": 4 * ALL}
    assert len(told(plan(NARROW, recover("a", "narrow", **online)))) == 1
    assert told(plan(NARROW, recover("a", "narrow", **{**online, **settings}))) == []


def test_students_that_ask_otherwise_share_nothing(plan):
    once = {"cache_teacher": "false", "tokens": ALL}
    steps = (NARROW, recover("a", "narrow", **once), SMALL)
    assert len(told(plan(*steps, recover("b", "small", **once)))) == 1
    assert told(plan(*steps, recover("b", "small", temperature=2, **once))) == []
    assert told(plan(*steps, recover("b", "small", teacher="narrow", **once))) == []


def test_it_says_nothing_of_a_student_with_another_vocabulary(plan):
    pruned = "{name: few, use: prune.vocab, target: {tokens: 50%}, corpus: calibration}"
    online = {"cache_teacher": "false", "tokens": 4 * ALL}
    assert told(plan(pruned, recover("a", "few", **online))) == []
    assert len(told(plan(pruned, recover("a", "few", teacher="few", label_weight=0.5, **online)))) == 1
