"""Shapes: B sequences, T positions, V vocabulary."""

import pytest
import torch
from torch.nn import functional

from compress.data.batch import Batch
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.errors import InputError
from compress.train import fused
from compress.train.objective import NextToken
from tests.models.tiny import tiny_model, token_ids

IDS_BT = token_ids()


def models(dtype=torch.float64, **student_changes):
    student = tiny_model("llama", seed=1, **student_changes).to(dtype)
    return student, tiny_model("qwen3", seed=2).to(dtype)


def distillation(student, teacher, temperature=1.0, label_weight=0.0, num_ids=259) -> Distillation:
    return Distillation(student, teacher, Recipe(named("forward_kl"), temperature, label_weight), num_ids)


def slow_loss(student, teacher, temperature, label_weight, vocabulary=259):
    """The formula, on whole logits."""
    student_BTV, teacher_BTV = (m(input_ids=IDS_BT).logits[:, :-1] for m in (student, teacher))
    labels = functional.cross_entropy(student_BTV.flatten(0, 1), IDS_BT[:, 1:].flatten(), reduction="sum")
    p_BTV = (teacher_BTV[..., :vocabulary] / temperature).softmax(-1)
    q_BTV = (student_BTV[..., :vocabulary] / temperature).softmax(-1)
    divergence = (p_BTV * (p_BTV / q_BTV).log()).sum()
    return (1 - label_weight) * temperature**2 * divergence + label_weight * labels


@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_and_gradients_are_those_of_the_formula(temperature, label_weight, monkeypatch):
    monkeypatch.setattr(fused, "TILE_BYTES", {"cpu": 4 * 259 * 5})
    monkeypatch.setattr(fused, "GROUP_BYTES", {"cpu": 4 * 259 * 20})
    student, teacher = models()
    total, num_tokens = distillation(student, teacher, temperature, label_weight)(Batch(IDS_BT))
    expected = slow_loss(student, teacher, temperature, label_weight)
    assert num_tokens == IDS_BT[:, 1:].numel()
    torch.testing.assert_close(total, expected)
    weights = list(student.parameters())
    ours, theirs = torch.autograd.grad(total, weights), torch.autograd.grad(expected, weights)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_with_labels_only_the_loss_and_gradients_are_those_of_training_bit_for_bit():
    student, teacher = models(torch.float32)
    weights = list(student.parameters())
    ours, theirs = (
        o(Batch(IDS_BT))[0] for o in (distillation(student, teacher, 1.0, 1.0), NextToken(student))
    )
    assert torch.equal(ours, theirs)
    pairs = zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True)
    assert all(torch.equal(our, their) for our, their in pairs)


def test_a_teacher_like_the_student_leaves_nothing_to_learn():
    student, teacher = (tiny_model("llama", seed=1) for _ in range(2))
    total, _ = distillation(student, teacher)(Batch(IDS_BT))
    total.backward()
    assert float(total.detach().abs()) < 1e-4
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-4


def test_only_the_student_gets_gradients():
    student, teacher = models(torch.float32)
    distillation(student, teacher)(Batch(IDS_BT))[0].backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("student_ids", [259, 272])
def test_padded_vocabularies_are_compared_by_id(student_ids):
    student, _ = models(vocab_size=student_ids)
    wide = tiny_model("qwen3", seed=2, vocab_size=264).double()
    total, _ = distillation(student, wide)(Batch(IDS_BT))
    expected = slow_loss(student, wide, 1.0, 0.0, vocabulary=min(student_ids, 264))
    torch.testing.assert_close(total, expected)


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused():
    with pytest.raises(InputError, match="tokenizer has 300 ids, but teacher or student only 259"):
        distillation(*models(), num_ids=300)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_student_with_fewer_tokens_learns_the_teachers_distribution_over_them(bias):
    kept = [*range(0, 259, 3), 300]  # the last is a row without a token
    student = tiny_model("llama", seed=1, vocab_size=len(kept)).double()
    teacher = tiny_model("qwen3", seed=2, vocab_size=304).double()
    if bias:
        teacher.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 304).double())
    ids_BT = IDS_BT % 80
    objective = Distillation(
        student, teacher, Recipe(named("forward_kl"), 2.0, 0.25), num_ids=87, teacher_ids=kept
    )
    total, num_tokens = objective(Batch(ids_BT))
    student_BTV = student(input_ids=ids_BT).logits[:, :-1]
    teacher_BTV = teacher(input_ids=torch.tensor(kept)[ids_BT]).logits[:, :-1, kept]
    p_BTV, q_BTV = ((logits_BTV / 2.0).softmax(-1) for logits_BTV in (teacher_BTV, student_BTV))
    labels = functional.cross_entropy(student_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum")
    expected = 0.75 * 4.0 * (p_BTV * (p_BTV / q_BTV).log()).sum() + 0.25 * labels
    assert num_tokens == ids_BT[:, 1:].numel()
    torch.testing.assert_close(total, expected)


def test_a_map_that_ends_before_the_students_tokens_is_refused():
    student, teacher = models()
    with pytest.raises(InputError, match="tokenizer has 259 ids, but teacher or student only 200"):
        Distillation(student, teacher, Recipe(named("forward_kl")), 259, teacher_ids=list(range(200)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_the_loss_is_close_to_the_exact_one(dtype):
    student, teacher = models(torch.float32)
    exact = float(slow_loss(student.double(), teacher.double(), 1.0, 0.0).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = distillation(student.float(), teacher.to(dtype))(Batch(IDS_BT))
    assert total.dtype == torch.float32
    assert float(total.detach()) == pytest.approx(exact, rel=0.05)
