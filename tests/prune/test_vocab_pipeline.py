"""A vocabulary pruned inside a pipeline: what is built on it reads data in its own tokenizer's ids."""

import json
import os
import subprocess
import sys

import pytest
import torch

from compress.digests import DigestMemo
from compress.engine.runs import find_run
from compress.engine.store import Store
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.token_map import read_kept
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from tests.prune.test_vocab import parent

PIPELINE = """
version: 1
name: fewer-tokens
model: {path: original}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 64}
  recovery: {source: demo, split: train, sequence_length: 64, samples: 64}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 24}
evaluate: {tasks: [world_facts], samples: 4}
profile: {batch_sizes: [1], prompt_tokens: [8], new_tokens: 4, repeats: 2}
steps:
  - {name: fewer, use: prune.vocab, target: {tokens: 75%}}
  - {name: recover, use: distill, data: recovery, tokens: 4096, batch_tokens: 1024, learning_rate: 3.0e-3}
  - {name: again, use: prune.vocab, target: {tokens: 90%}}
  - {name: more, use: distill, data: recovery, teacher: recover, tokens: 1024, batch_tokens: 1024}
  - {name: other, use: train, from: original, data: recovery, tokens: 1024, batch_tokens: 1024}
"""


@pytest.fixture
def pipeline(tmp_path):
    parent(tmp_path / "original", dtype=torch.float32, max_position_embeddings=256)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return tmp_path / "pipeline.yaml"


def test_data_is_tokenized_for_the_nearest_ancestor_that_rewrote_the_tokenizer(pipeline, tmp_path):
    plan = make_plan(load_pipeline(pipeline), DigestMemo(tmp_path / "memo.json"))
    parents = {
        step: plan[next(iter(node for node in plan[step].inputs.values() if node.startswith("data/")))].parent
        for step in ("fewer", "recover", "again", "more", "other")
    }
    assert parents == {
        "fewer": "original",
        "recover": "fewer",
        "again": "fewer",
        "more": "again",
        "other": "original",
    }
    texts = {plan[f"{step}/divergence"].inputs["text"] for step in ("original", "recover", "more", "other")}
    assert texts == {"data/heldout"} and plan["data/heldout"].parent == "original"
    assert plan["recover"].spec.config["vocab_size"] == 528 and plan["more"].spec.config["vocab_size"] == 480


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_pruned_vocabulary_recovers_and_is_measured_in_its_own_ids(pipeline, tmp_path):
    environment = {**os.environ, "COMPRESS_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "compress", "run", str(pipeline)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = (tmp_path / "home").glob("runs/*/run.json")
    record = find_run(json.loads(path.read_text())["id"], tmp_path / "home")
    figures = {step.name: {m.name: m for m in step.measurements} for step in record.steps}
    assert all(step.predicted == step.realized for step in record.steps)
    for name in ("fewer", "recover", "again", "more"):
        assert {"bits_per_byte", "same_segmentation", "mean_accuracy"} <= set(figures[name])
        assert "perplexity" not in figures[name]
    for name in ("fewer", "recover", "again", "more"):
        # Of nearly all of the text, not of the little before the first token cut otherwise.
        assert figures[name]["kl_coverage"].value > 0.8 > figures[name]["same_segmentation"].value
        assert figures[name]["kl_divergence"].value > 0.0
    assert "same_segmentation" not in figures["other"] and "perplexity" in figures["other"]
    folder = Store(tmp_path / "home").get(record.step("more").key).path
    kept, tokenizer = read_kept(folder), load_tokenizer(folder)
    names = load_tokenizer(tmp_path / "original").convert_ids_to_tokens(kept)
    assert tokenizer.convert_ids_to_tokens(range(len(kept))) == names
    assert load_model(folder).config.vocab_size == len(kept) == 480
