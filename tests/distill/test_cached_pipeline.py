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
  - {name: narrow, use: prune.width, target: {params: 80%}, tokens: 512}
  - {name: recover, use: distill, tokens: 4096, batch_tokens: 256, cache_teacher: {top_k: 16, samples: 8}}
  - {name: smaller, use: prune.width, target: {params: 60%}, tokens: 512, from: original}
  - {name: again, use: distill, tokens: 4096, batch_tokens: 256, cache_teacher: {top_k: 16, samples: 8}}
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.timeout(300)
def test_two_students_learn_from_one_cache_and_the_record_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))
    file = tmp_path / "cached.yaml"
    file.write_text(PIPELINE)
    pipeline = compress.load_pipeline(file)
    record = compress.run(pipeline)
    recover, again = record.step("recover"), record.step("again")
    (child,) = recover.children
    assert child.use == "distill.cache_teacher" and child.how == "prepared" and not again.children
    assert child.facts["rows"] == 16 and child.facts["bytes_per_token"] < 60
    for step in (recover, again):
        assert step.predicted == step.realized
        assert 0 < step.facts["cache_gradient_error"] < 1
        assert abs(step.facts["cache_loss_difference"]) < 0.2
        assert step.curve[-1].loss < step.curve[0].loss
    folder = Store().folder(child.key)
    assert json.loads((folder / "signals.json").read_text())["top_k"] == 16
    assert not Store().partial(child.key).exists()
