"""``kill -9`` of the whole process tree at any moment, then the same command again: the same bytes as undisturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from compress.digests import file_digest
from compress.engine.runs import all_runs
from compress.engine.store import Store

KILLS = 10

PIPELINE = """
version: 1
name: small
model:
  tokenizer: bytes
  config:
    {model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 32}
  recovery: {source: demo, sequence_length: 64, tokens: 60k}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
evaluate: {tasks: [world_facts], samples: 4}
profile: {prompt_tokens: [8], new_tokens: 4, repeats: 1}
steps:
  - {name: taught, measure: [], use: train, tokens: 60k, batch_tokens: 1024,
     learning_rate: 2e-3, checkpoint_seconds: 0.5}
  - {name: shallow, measure: [], use: prune.depth, target: {layers: 2}}
  - {name: narrow, measure: [], use: prune.width, target: {params: 70%}}
  - {name: recover, measure: [], use: distill, teacher: taught, tokens: 60k, batch_tokens: 1024,
     checkpoint_seconds: 0.5}
  - {name: int8, measure: [], use: quantize.bitsandbytes, bits: 8}
  - {name: int4, use: quantize.rtn, bits: 4, group_size: 16, from: recover}
  - {name: edge, use: export.onnx}
"""


def start(folder, home):
    environment = {**os.environ, "COMPRESS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "compress", "run", str(folder / "small.yaml")],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def process_tree(pid):
    """The process and all its descendants."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(p for child in found for p in process_tree(int(child)))]


def kill_tree(process):
    for pid in process_tree(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def payloads(home):
    """The digest of every file of every model in the finished run, manifests and logs left out."""
    [record] = all_runs(home)
    assert record.status == "done", record.error
    return {
        (step.name, path.name): file_digest(path)
        for step in record.steps
        for path in Store(home).folder(step.key).iterdir()
        if path.name not in ("manifest.json", "COMMIT")
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(tmp_path):
    (tmp_path / "small.yaml").write_text(PIPELINE)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    began = time.monotonic()
    assert start(tmp_path, undisturbed).wait() == 0, (tmp_path / "log").read_text()
    whole = time.monotonic() - began
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start(tmp_path, disturbed)
        try:
            process.wait(timeout=chance.uniform(0.1, 0.5) * whole)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            kills += 1
            continue
        assert payloads(disturbed) == payloads(undisturbed)
        shutil.rmtree(disturbed)  # it finished between two kills: the next ones hit a run from the beginning
    assert start(tmp_path, disturbed).wait() == 0, (tmp_path / "log").read_text()
    assert payloads(disturbed) == payloads(undisturbed)
