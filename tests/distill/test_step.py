import json

import pytest
import torch
from pydantic import ValidationError

from compress.distill import step
from compress.distill import teacher as teachers
from compress.distill.divergences import named
from compress.distill.losses import forward_kl
from compress.distill.objective import Distillation, Recipe
from compress.distill.teacher import known_device, load_teacher
from compress.errors import InputError
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.token_map import read_kept
from compress.records import Artifact
from compress.train import checkpoint
from compress.train import step as train
from compress.train.distribution import Distribution
from tests.fakes import FakeContext, Stopped
from tests.models.small_tokenizers import TEXTS
from tests.models.tiny import tiny_model, token_ids
from tests.prune.test_vocab import parent as tokenized
from tests.prune.test_vocab import pruned
from tests.train.inputs import context, parent, payload, tokens

SETTINGS = {"tokens": 16 * 4 * 8, "batch_tokens": 16 * 4, "learning_rate": 3e-3}


def forward_kl_of(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    both = (Distribution.of(each) for each in (student_NV, teacher_NV))
    return forward_kl.divergence(*both, forward_kl.Config())[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("teacher"), "qwen3", seed=5)


def mean_kl(student, teacher, ids_BT) -> float:
    with torch.no_grad():
        logits = [load_model(folder)(input_ids=ids_BT).logits.flatten(0, 1) for folder in (student, teacher)]
        return float(forward_kl_of(*logits).mean())


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_distillation_brings_the_student_closer_to_its_teacher_on_other_text(name, teacher, tmp_path):
    student = parent(tmp_path / "student")
    settings = {**SETTINGS, "tokens": 16 * 8 * 60, "batch_tokens": 16 * 8, "learning_rate": 1e-2}
    config = step.Config(**settings, divergence=name)
    inputs = context(tmp_path / "result", teacher=teacher)
    inputs.inputs["data"] = tokens(tmp_path / "random", token_ids(num=200, length=16, seed=1))
    outcome = step.run(student, config, inputs)
    held_out_BT = token_ids(num=20, length=16, seed=2)
    before, after = (mean_kl(tmp_path / name, teacher.path, held_out_BT) for name in ("student", "result"))
    assert after < 0.8 * before
    assert outcome.facts["curve"][-1]["loss"] < 0.8 * outcome.facts["curve"][0]["loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_prediction_is_what_is_written(dtype, teacher, tmp_path):
    student = parent(tmp_path / "student", dtype=dtype)
    config = step.Config(**SETTINGS, temperature=2.0, label_weight=0.5)
    outcome = step.run(student, config, context(tmp_path / "result", teacher=teacher))
    assert outcome.spec == step.predict(student.spec, config)


def test_with_labels_only_the_result_is_that_of_training(teacher, tmp_path):
    student = parent(tmp_path / "student")
    config = step.Config(**SETTINGS, label_weight=1.0)
    step.run(student, config, context(tmp_path / "distilled" / "result", teacher=teacher))
    train.run(student, train.Config(**SETTINGS), context(tmp_path / "trained" / "result"))
    assert payload(tmp_path / "distilled" / "result") == payload(tmp_path / "trained" / "result")


def test_stopped_and_resumed_distillation_ends_in_the_same_bytes(teacher, tmp_path, monkeypatch):
    class StopsAfterThree(FakeContext):
        def progress(self, *arguments, **figures):
            super().progress(*arguments, **figures)
            self.stopping = len(self.reports) == 3

    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    student = parent(tmp_path / "student")
    config = step.Config(**SETTINGS, checkpoint_seconds=0)
    step.run(student, config, context(tmp_path / "whole" / "result", teacher=teacher))
    with pytest.raises(Stopped):
        step.run(student, config, context(tmp_path / "cut" / "result", kind=StopsAfterThree, teacher=teacher))
    step.run(student, config, context(tmp_path / "cut" / "result", teacher=teacher))
    assert payload(tmp_path / "whole" / "result") == payload(tmp_path / "cut" / "result")


def with_changed_tokenizer(folder, change):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_teacher_with_another_tokenizer_is_refused(teacher, tmp_path):
    def swap(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    student = parent(tmp_path / "student")
    with_changed_tokenizer(tmp_path / "student", swap)
    with pytest.raises(InputError, match="of the student's 259 tokens, 2 have another id or none"):
        step.run(student, step.Config(**SETTINGS), context(tmp_path / "result", teacher=teacher))


def test_a_student_with_a_pruned_vocabulary_learns_from_the_original(tmp_path):
    original = tokenized(tmp_path / "original", dtype=torch.float32)
    outcome, *_ = pruned(original, tmp_path / "pruned", target={"tokens": "75%"})
    student = Artifact(key="pruned", kind="hf", path=tmp_path / "pruned", spec=outcome.spec)
    with torch.no_grad():  # something to recover from
        model = load_model(student.path)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(student.path)
    kept = read_kept(student.path)
    ids = load_tokenizer(student.path)(TEXTS[:150])["input_ids"]
    stream = torch.tensor([index for row in ids for index in row])
    data, held_out_BT = stream[: 16 * 400].view(-1, 16).split(300)
    inputs = context(tmp_path / "result", teacher=original)
    inputs.inputs["data"] = tokens(tmp_path / "data", data)
    settings = {"tokens": 16 * 8 * 40, "batch_tokens": 16 * 8, "learning_rate": 3e-3}
    outcome = step.run(student, step.Config(**settings), inputs)
    assert outcome.spec == step.predict(student.spec, step.Config(**settings))
    assert read_kept(tmp_path / "result") == kept

    def distance(folder) -> float:
        with torch.no_grad():
            ours = load_model(folder)(input_ids=held_out_BT).logits
            theirs = load_model(original.path)(input_ids=torch.tensor(kept)[held_out_BT]).logits[..., kept]
            return float(forward_kl_of(ours.flatten(0, 1), theirs.flatten(0, 1)).mean())

    assert distance(tmp_path / "result") < 0.7 * distance(student.path)


def test_a_teacher_that_lacks_tokens_of_the_student_is_refused(tmp_path):
    original = tokenized(tmp_path / "original", dtype=torch.float32)
    outcome, *_ = pruned(original, tmp_path / "pruned", target={"tokens": "75%"})
    teacher = Artifact(key="pruned", kind="hf", path=tmp_path / "pruned", spec=outcome.spec)
    with pytest.raises(InputError, match=r"have another id or none among the teacher's 528"):
        step.run(original, step.Config(**SETTINGS), context(tmp_path / "result", teacher=teacher))


def test_tokenizer_files_that_differ_in_no_id_are_the_same_tokenizer(teacher, tmp_path):
    student = parent(tmp_path / "student")
    with_changed_tokenizer(tmp_path / "student", lambda tokenizer: None)
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() != (
        teacher.path / "tokenizer.json"
    ).read_bytes()
    step.run(student, step.Config(**SETTINGS), context(tmp_path / "result", teacher=teacher))


def test_a_teacher_keeps_its_stored_dtype_where_that_is_fast_and_not_refused(tmp_path, monkeypatch):
    folder = parent(tmp_path / "teacher", dtype=torch.bfloat16).path
    for fast, precision, dtype in (
        (True, "auto", torch.bfloat16),
        (True, "fp32", torch.float32),
        (False, "auto", torch.float32),
    ):
        monkeypatch.setattr(teachers, "has_fast_bf16", lambda device, fast=fast: fast)
        assert load_teacher(folder, precision).dtype == dtype


def test_a_misspelled_divergence_is_refused_with_the_nearest_one():
    with pytest.raises(ValidationError, match="did you mean 'forward_kl'"):
        step.Config(**SETTINGS, divergence="forwad_kl")


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"label_weight": 1.5}, {"tempature": 2}, {"teacher_device": "gpu1"}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        step.Config(**SETTINGS, **wrong)


def test_a_teacher_may_run_on_a_device_of_its_own(teacher, tmp_path):
    student = parent(tmp_path / "student")
    for device in ("auto", "cpu"):
        config = step.Config(**SETTINGS, hidden_weight=0.1, teacher_device=device)
        step.run(student, config, context(tmp_path / device, teacher=teacher))
    assert payload(tmp_path / "auto") == payload(tmp_path / "cpu")


def test_only_what_is_beside_the_student_moves_to_its_device():
    student, teacher = tiny_model("llama"), tiny_model("llama")
    objective = Distillation(student, teacher, Recipe(named("forward_kl")), 0, teacher_device="meta")
    objective.place("cpu")
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    assert {p.device.type for p in student.parameters()} == {"cpu"}


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert known_device("cuda:1") == "cuda:1" and known_device("auto") is None
    with pytest.raises(
        InputError, match=r"teacher_device: cuda:2: here is cuda:0 to cuda:1\. Allowed: auto, cpu"
    ):
        known_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="here is no GPU"):
        known_device("cuda")


@pytest.mark.parametrize("other", [{"launch": {"processes": 2}}, {"cache_teacher": True}])
def test_a_device_is_only_for_a_teacher_beside_one_process(other):
    with pytest.raises(
        ValueError, match="`teacher_device: cpu` is for a teacher that runs beside one process"
    ):
        step.Config(**SETTINGS, teacher_device="cpu", **other)
