"""A pipeline with cached teacher signals, through the whole program in its own processes."""

import json

import pytest

import compress
from compress.engine.store import Store

PIPELINE = """
version: 1
name: cached
model:
  tokenizer: bytes
  config:
    {model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 8}
  recovery: {source: demo, split: train, sequence_length: 64, samples: 16}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 4}
evaluate: {tasks: [world_facts], samples: 4}
profile: {batch_sizes: [1], prompt_tokens: [8], new_tokens: 4, repeats: 2}
steps:
  - {name: narrow, use: prune.width, measure: [], target: {params: 80%}, tokens: 512}
  - {name: recover, use: distill, measure: [], tokens: 4096, batch_tokens: BATCH,
     cache_teacher: {top_k: 16, samples: 8}, held_out: heldout, stop_after: 50, precision: fp32LAUNCH}
  - {name: smaller, use: prune.width, measure: [], target: {params: 60%}, tokens: 512, from: original}
  - {name: again, use: distill, measure: [], tokens: 4096, batch_tokens: BATCH,
     cache_teacher: {top_k: 16, samples: 8}, held_out: heldout, precision: fp32}
"""


def run(folder, home, monkeypatch, pipeline=PIPELINE, batch=256, launch=""):
    monkeypatch.setenv("COMPRESS_HOME", str(folder / home))
    file = folder / "cached.yaml"
    file.write_text(pipeline.replace("BATCH", str(batch)).replace("LAUNCH", launch))
    return compress.run(compress.load_pipeline(file))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.timeout(600)
def test_two_students_learn_from_one_cache_and_the_record_says_how_far_it_is(tmp_path, monkeypatch):
    record = run(tmp_path, "home", monkeypatch)
    recover, again = record.step("recover"), record.step("again")
    child, held_out = recover.children
    assert not again.children
    for each in (child, held_out):
        assert each.use == "distill.cache_teacher" and each.how == "prepared"
    assert child.facts["rows"] == 16 and child.facts["bytes_per_token"] < 60
    assert held_out.facts["rows"] == 4
    for step in (recover, again):
        assert step.predicted == step.realized
        assert 0 < step.facts["cache_gradient_error"] < 1
        assert abs(step.facts["cache_loss_difference"]) < 0.2
        assert step.curve[-1].loss < step.curve[0].loss
        before, after = step.facts["before"]["held_out"], step.curve[-1].held_out
        assert after["kl"] == pytest.approx(after["loss"]) and after["kl"] < before["kl"]
        assert after["teacher_entropy"] == before["teacher_entropy"] > 0
        assert step.facts["best_held_out_loss"] <= after["loss"]
    assert recover.facts["kept_tokens"] and not recover.facts["stopped_early"]
    folder = Store().folder(child.key)
    assert json.loads((folder / "signals.json").read_text())["top_k"] == 16
    assert not Store().partial(child.key).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.timeout(600)
def test_two_processes_learn_and_see_what_one_does(tmp_path, monkeypatch):
    """A batch has five rows, read one by one: in the last turn a process has none left."""
    one_student, _, _ = PIPELINE.partition("  - {name: smaller")
    one, two = (
        run(tmp_path, home, monkeypatch, one_student, 5 * 64, f", micro_batch: 1{launch}").step("recover")
        for home, launch in (("one", ""), ("two", ", launch: {processes: 2}"))
    )
    assert two.facts["processes"] == 2 and one.key == two.key
    for ours, theirs in zip(two.curve, one.curve, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
        assert ours.held_out == pytest.approx(theirs.held_out, rel=1e-2)
    assert any("kl" in point.held_out for point in two.curve)
