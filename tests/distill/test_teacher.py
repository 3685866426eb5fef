import pytest
import torch

from compress.data.batch import Batch
from compress.distill import step
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.distill.teacher import load_teacher
from compress.models.checkpoint import load_model
from compress.records import Artifact
from compress.train.head import hidden_states
from tests.models.tiny import token_ids, write_tiny
from tests.train.inputs import context, parent

IDS_BT = token_ids(num=4, length=24)
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("teacher"), "qwen3", seed=5, **WIDE).path


def learned(student, teacher) -> tuple[float, torch.Tensor]:
    """The mean loss with that teacher and its gradient with respect to all weights, as one vector."""
    total, count = Distillation(student, teacher, Recipe(named("forward_kl")), 259)(Batch(IDS_BT))
    gradients = torch.autograd.grad(total, list(student.parameters()))
    return float(total.detach()) / count, torch.cat([g.flatten() for g in gradients]) / count


@pytest.mark.parametrize(
    ("kept_in", "loss_error", "gradient_error"),
    [("bf16", 0.005, 0.03), ("int8", 0.005, 0.07), ("nf4", 0.01, 0.5)],
)
def test_a_rounded_teacher_teaches_nearly_the_same(kept_in, loss_error, gradient_error, folder, tmp_path):
    student = load_model(parent(tmp_path / "student").path)
    exact, whole = learned(student, load_teacher(folder, "fp32"))
    loss, gradient = learned(student, load_teacher(folder, "fp32", kept_in))
    error = float((gradient - whole).norm() / whole.norm())
    assert loss == pytest.approx(exact, rel=loss_error)
    assert 1e-6 < error < gradient_error


@pytest.mark.parametrize("kept_in", ["int8", "nf4"])
def test_rounding_saves_memory_and_leaves_the_head(kept_in, folder):
    teacher, whole = load_teacher(folder, "fp32", kept_in), load_teacher(folder, "fp32")
    assert teacher.get_memory_footprint() < 0.6 * whole.get_memory_footprint()
    head = teacher.get_output_embeddings()
    assert type(head) is torch.nn.Linear and torch.equal(head.weight, whole.get_output_embeddings().weight)


@pytest.mark.parametrize("kept_in", ["int8", "nf4"])
def test_a_rounded_teacher_runs_under_autocast(kept_in, folder):
    teacher = load_teacher(folder, "fp32", kept_in)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert hidden_states(teacher, Batch(IDS_BT)).isfinite().all()


UNEVEN = [
    ("llama", {"hidden_size": 32, "intermediate_size": 64}),
    ("llama", {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}),
    (
        "llama",
        {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    ("gpt2", {"n_embd": 48, "n_inner": 80}),
]
"""Shapes that no kernel for blocks of 64 or 32 takes whole."""


@pytest.mark.parametrize("kept_in", ["int8", "nf4"])
@pytest.mark.parametrize(("family", "sizes"), UNEVEN, ids=str)
def test_a_teacher_of_any_width_is_rounded(kept_in, family, sizes, tmp_path):
    folder = write_tiny(tmp_path, family, **sizes)
    teacher, whole = load_teacher(folder, "fp32", kept_in), load_teacher(folder, "fp32")
    with torch.inference_mode():
        rounded, exact = (hidden_states(model, Batch(IDS_BT)) for model in (teacher, whole))
        alone = hidden_states(teacher, Batch(IDS_BT[:1, :2]))
    assert 1e-4 < float((rounded - exact).norm() / exact.norm()) < 0.5
    assert alone.isfinite().all()


@pytest.mark.parametrize("kept_in", ["int8", "nf4"])
def test_a_step_learns_from_a_rounded_teacher(kept_in, folder, tmp_path):
    teacher = Artifact(key="teacher", kind="hf", path=folder)
    config = step.Config(tokens=512, batch_tokens=64, learning_rate=3e-3, teacher_precision=kept_in)
    outcome = step.run(parent(tmp_path / "student"), config, context(tmp_path / "result", teacher=teacher))
    curve = outcome.facts["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
