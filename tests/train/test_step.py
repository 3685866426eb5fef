import subprocess
import sys

import pytest
import torch

from compress.distill import step as distill
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.train import step
from compress.train.cost import training_work
from compress.train.memory_account import Teaching
from tests.models.tiny import TRAINABLE, write_tiny
from tests.train.inputs import context, countable_ids, parent

CONFIG = step.Config(tokens=16 * 4 * 6, batch_tokens=16 * 4, learning_rate=3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", TRAINABLE)
def test_the_prediction_is_what_is_written(family, tied, dtype, tmp_path):
    model = parent(tmp_path / "parent", family, dtype=dtype, tie_word_embeddings=tied)
    outcome = step.run(model, CONFIG, context(tmp_path / "result"))
    assert outcome.spec == step.predict(model.spec, CONFIG)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_model_whose_attention_has_no_fused_kernel_is_trained(family, tmp_path):
    config = CONFIG.model_copy(update={"precision": "fp32"})  # else rows as short are attended to plainly
    outcome = step.run(parent(tmp_path / "parent", family), config, context(tmp_path / "result"))
    assert outcome.facts["loss"] < outcome.facts["curve"][0]["loss"]


def test_the_result_loads_and_scores_better_than_its_parent(tmp_path):
    model = parent(tmp_path / "parent")
    step.run(model, CONFIG.model_copy(update={"tokens": 16 * 4 * 30}), context(tmp_path / "result"))
    ids_BT = countable_ids()
    with torch.no_grad():
        before, after = (
            float(load_model(folder)(input_ids=ids_BT, labels=ids_BT).loss)
            for folder in (tmp_path / "parent", tmp_path / "result")
        )
    assert after < before - 1
    assert (tmp_path / "result" / "tokenizer.json").read_bytes() == (
        tmp_path / "parent" / "tokenizer.json"
    ).read_bytes()


def test_the_estimate_counts_six_operations_a_parameter_and_token_and_two_for_a_teacher(tmp_path):
    spec = parent(tmp_path / "parent").spec
    alone, taught = training_work(spec, CONFIG), training_work(spec, CONFIG, Teaching(spec))
    assert alone.flops == 6 * spec.num_parameters * CONFIG.tokens
    assert taught.flops == 8 * spec.num_parameters * CONFIG.tokens
    teachers = {item.name: item.num_bytes for item in taught.memory if "teacher" in item.name}
    assert teachers == {"teacher's weights": spec.weight_bytes}
    assert taught.peak_memory_bytes - alone.peak_memory_bytes > spec.weight_bytes


@pytest.mark.parametrize("module", ["compress.train.step", "compress.distill.step"])
def test_a_planner_can_import_the_step_without_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("module", [step, distill])
def test_what_cannot_be_trained_is_refused_when_planned(module, tmp_path):
    with pytest.raises(InputError, match="learns the next token, and this model is a masked language model"):
        module.predict(read_spec(write_tiny(tmp_path, "bert")), module.Config(tokens=64))
