"""Every shipped pipeline, and a user's own checkpoint, through the whole program in its own processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.engine.runs import find_run
from compress.engine.store import Store
from tests.models.tiny import write_tiny

ROOT = Path(__file__).parents[1]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))

pytestmark = pytest.mark.timeout(600)


def compress(*arguments, home, cwd):
    environment = {**os.environ, "COMPRESS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "compress", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


def check_record(record, home, untimed=()):
    """What every finished run promises. untimed: steps that only quality and divergence are measured of."""
    assert record.status == "done"
    for step in record.steps:
        assert step.is_about or step.predicted == step.realized, step.name
        names = {m.name for m in step.measurements}
        costs = {"time_to_first_token", "time_per_output_token", "peak_memory"}
        assert {"mean_accuracy", "perplexity"} <= names, step.name
        assert names & costs == (set() if step.name in untimed else costs), step.name
        if step.name != "original":
            assert {"kl_divergence", "same_top_token"} <= names, step.name
        if step.kind != "onnx" and step.use != "checkpoint":  # the user's own folder is not in the store
            check_plain_transformers(Store(home).get(step.key))


def check_plain_transformers(artifact):
    """The folder loads with nothing missing and generates the same tokens with and without a cache."""
    model, info = AutoModelForCausalLM.from_pretrained(artifact.path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    inputs = tokenizer("The home of", return_tensors="pt")
    with torch.inference_mode():
        tokens = [
            model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache)
            for cache in (True, False)
        ]
    assert torch.equal(*tokens)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda path: path.stem)
def test_a_shipped_pipeline_passes_its_rehearsal(pipeline, tmp_path):
    home = tmp_path / "home"
    result = compress("run", pipeline, "--test", home=home, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = find_run(json.loads(next(home.glob("runs/*/run.json")).read_text())["id"], home)
    check_record(record, home)
    [report] = (tmp_path / "reports").glob("*.html")
    assert f"Report: reports/{report.name}" in result.stdout
    again = compress("run", pipeline, "--test", home=home, cwd=tmp_path)
    assert again.returncode == 0 and "done in" not in again.stderr, "the second run did something"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("family", "has_tokenizer"), [("llama", False), ("qwen3", True)])
def test_a_plain_checkpoint_goes_through_init_and_run(family, has_tokenizer, tmp_path):
    home, folder = tmp_path / "home", tmp_path / "checkpoint"
    write_tiny(folder, family)
    if has_tokenizer:
        write_byte_tokenizer(folder)
    written = compress("init", folder, "-o", tmp_path / "my.yaml", home=home, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    small = {
        "steps.recover.tokens": "16k",
        "evaluate.samples": 8,
        "data.recovery.tokens": "20k",
        "data.calibration.samples": 16,
        "data.heldout.samples": 8,
    }
    smaller = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    result = compress("run", tmp_path / "my.yaml", *smaller, home=home, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = find_run(next(home.glob("runs/*/run.json")).parent.name, home)
    check_record(record, home, untimed=("narrow",))
    target = tmp_path / "student"
    leaf = record.leaves[-1]
    exported = compress("export", f"{record.id}:{leaf.name}", target, home=home, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert leaf.name in (target / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "olmoe", "gemma3_text", "qwen3", "bert"])
def test_what_is_written_for_a_family_is_valid_and_passes_its_rehearsal(family, tmp_path):
    home = tmp_path / "home"
    write_tiny(tmp_path / "checkpoint", family)
    for command in (
        ("init", "checkpoint", "-o", "my.yaml"),
        ("validate", "my.yaml"),
        ("run", "my.yaml", "--test"),
    ):
        result = compress(*command, home=home, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    record = find_run(next(home.glob("runs/*/run.json")).parent.name, home)
    assert record.status == "done" and all(step.predicted == step.realized for step in record.steps)


def write_byte_tokenizer(folder):
    from compress.data import tokenizer
    from tests.fakes import FakeContext

    context = FakeContext(folder.parent / "tokenizer")
    tokenizer.run(None, tokenizer.Config(kind="bytes"), context)
    for file in context.folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
