"""Compiled rows against dense fp64.

Shapes: g tokens of a group, V vocabulary, D hidden size.
"""

import errno
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba import njit

from compress.distill import cpu_rows
from compress.distill.rows import KernelJudge, SparseJudge, bits_of, over_rows
from compress.distill.targets import sparse_loss, sparse_targets
from compress.train.projection import Projection
from tests.distill.test_rows import slow_rows

WIDTH = 32


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(num_tokens, vocabulary, dtype, apart=1.0):
    """Return a student's and a teacher's output layer under autocast to a dtype, and the teacher's matrix in bf16.

    Their logits are about 4 in size; `apart`: how far the student is from its teacher, 1 for not at all alike.
    """
    hidden_gD, weight_VD = noise(0, num_tokens, WIDTH), noise(1, vocabulary, WIDTH) * 4 / WIDTH**0.5
    theirs = hidden_gD + apart * noise(2, num_tokens, WIDTH), weight_VD + apart * noise(3, vocabulary, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return Projection.of(hidden_gD, weight_VD), Projection.of(theirs[0], theirs[1].to(dtype))


def judged(student, teacher, targets_g, temperature=1.0, label_weight=0.0):
    """What compiled rows find, and what they should have found: losses and gradients of each."""
    group = slice(0, len(targets_g))
    judge = KernelJudge(student, teacher, teacher.product(group), group, targets_g, temperature, label_weight)
    found = judge.judge_group(student.product(group))
    exact = [
        (each.hidden.double() @ (each.weight if each.stored is None else each.stored).double().T)
        for each in (student, teacher)
    ]
    return found, slow_rows(*exact, targets_g, temperature=temperature, label_weight=label_weight)


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("label_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("vocabulary", [7, 256, 5003])
def test_losses_and_gradients_of_fp32_rows_are_those_of_the_formula(vocabulary, temperature, label_weight):
    targets_g = torch.tensor([0, vocabulary - 1, vocabulary // 2])
    (losses_g, slopes_gV), (exact_g, exact_gV) = judged(
        *layers(3, vocabulary, torch.float32), targets_g, temperature, label_weight
    )
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slopes_gV.double(), exact_gV, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label_weight", [0.0, 0.3])
@pytest.mark.parametrize(("temperature", "apart"), [(1.0, 1.0), (1.0, 0.03), (2.5, 1.0), (2.5, 0.2)])
@pytest.mark.parametrize("vocabulary", [7, 5003])
def test_gradients_of_bf16_rows_are_within_one_per_cent(vocabulary, apart, temperature, label_weight):
    """However close the models are; at high temperatures nothing is likely, and rounding shows sooner."""
    student, teacher = layers(40, vocabulary, torch.bfloat16, apart)
    targets_g = torch.arange(40) * 131 % vocabulary
    (losses_g, slopes_gV), (exact_g, exact_gV) = judged(
        student, teacher, targets_g, temperature, label_weight
    )
    assert slopes_gV.dtype == torch.bfloat16
    assert error(slopes_gV, exact_gV) < 0.01 and error(losses_g, exact_g) < 0.01


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_what_all_logits_have_in_common_changes_nothing(offset):
    """GPT-2's are about 100 below zero; the models are close, and each has its own."""
    student, teacher = layers(20, 300, torch.float32, 0.01)
    targets_g, group = torch.arange(20), slice(0, 20)
    products = [each.product(group) for each in (student, teacher)]
    moved = [(products[0] + offset).contiguous(), (products[1] - 0.3 * offset).contiguous()]
    exact_g, exact_gV = slow_rows(*moved, targets_g)
    judge = KernelJudge(student, teacher, moved[1], group, targets_g, 1.0, 0.0)
    losses_g, slopes_gV = judge.judge_group(moved[0])
    assert error(slopes_gV, exact_gV) < 1e-4
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=1e-3, atol=1e-7)


def test_ids_beyond_the_vocabulary_are_refused():
    student, teacher = layers(4, 300, torch.bfloat16)
    with pytest.raises(AssertionError):
        judged(student, teacher, torch.tensor([0, 1, 2, 300]))


def test_without_a_place_for_compiled_code_it_is_compiled_anew(monkeypatch):
    """As where neither the package's folder nor the user's cache can be written to."""

    def refusing(function, cache=False, **flags):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **flags)

    monkeypatch.setattr(cpu_rows, "njit", refusing)
    found = np.zeros(5)
    over_rows(cpu_rows.compiled(count_up), (found,), 5)
    assert found.tolist() == [0, 1, 2, 3, 4]


def count_up(found, first, last):
    for row in range(first, last):
        found[row] = row


def test_code_that_a_full_disk_does_not_take_is_used_all_the_same(tmp_path):
    class OnFullDisk:
        overloads, stats = {}, SimpleNamespace(cache_path=str(tmp_path))
        __call__ = staticmethod(count_up)

        def compile(self, types):
            raise OSError(errno.ENOSPC, "No space left on device")

    found = np.zeros(5)
    over_rows(OnFullDisk(), (found,), 5)
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_a_bf16_teacher_beside_an_fp32_student():
    student = layers(9, 300, torch.float32)[0]
    teacher = layers(9, 300, torch.bfloat16)[1]
    (losses_g, slopes_gV), (exact_g, exact_gV) = judged(student, teacher, torch.arange(9), 1.0, 0.3)
    assert slopes_gV.dtype == torch.float32
    assert error(slopes_gV, exact_gV) < 0.01 and error(losses_g, exact_g) < 0.01


def test_a_teacher_like_the_student_leaves_nothing_to_learn():
    student, _ = layers(9, 300, torch.bfloat16)
    (losses_g, slopes_gV), _ = judged(student, student, torch.arange(9))
    assert float(losses_g.abs().max()) < 1e-6 and not slopes_gV.any()


def test_memory_can_be_freed_early_afterwards():
    """Weights that a team has gathered are."""
    student, teacher = layers(4, 300, torch.bfloat16)
    judged(student, teacher, torch.arange(4))
    for tensor in (student.stored, student.hidden, teacher.stored, teacher.weight):
        tensor.untyped_storage().resize_(0)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(judged(*layers(5, 300, torch.bfloat16), torch.arange(5), 2.0, 0.3)[0])
    for losses_g, slopes_gV in found[1:]:
        assert torch.equal(losses_g, found[0][0]) and torch.equal(slopes_gV, found[0][1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("whose", [0, 1], ids=["student", "teacher"])
def test_a_loss_of_what_is_no_number_is_none(whose, dtype, value):
    both = layers(4, 600, dtype)
    both[whose].hidden[2, 5] = value
    losses_g = judged(*both, torch.arange(4))[0][0]
    assert losses_g.isfinite().tolist() == [True, True, False, True]


def test_one_logit_that_is_no_number_is_enough():
    student, teacher = layers(2, 600, torch.float32)
    product_gV = student.product(slice(0, 2))
    product_gV[1, 300] = torch.nan
    judge = KernelJudge(
        student, teacher, teacher.product(slice(0, 2)), slice(0, 2), torch.arange(2), 1.0, 0.0
    )
    assert judge.judge_group(product_gV)[0].isfinite().tolist() == [True, False]


def test_exponentials_are_as_exact_as_fp32():
    x = np.linspace(-86, 88, 100_001, dtype=np.float32)
    found = np.array([cpu_rows.exp(each) for each in x[::50]])
    np.testing.assert_allclose(found, np.exp(x[::50].astype(np.float64)), rtol=4e-7)
    assert cpu_rows.exp(np.float32(-1e30)) < 1e-37 and np.isnan(cpu_rows.exp(np.float32(np.nan)))


@njit
def put_all(row, numbers):
    for place in range(len(numbers)):
        cpu_rows.write_rounded(row, place, numbers[place])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_numbers_are_rounded_as_torch_rounds_them(dtype):
    numbers = torch.cat(
        [
            noise(0, 500) * 10.0 ** torch.arange(-5, 5).repeat(50),
            torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 0.0, -0.0]),
        ]
    )
    row = torch.zeros(len(numbers), dtype=dtype)
    put_all(bits_of(row), numbers.numpy())
    assert torch.equal(row, numbers.to(dtype))


def test_no_more_ids_are_found_than_there_is_room_for():
    row = bits_of(torch.zeros(1, 600))[0]
    tops, ids = np.zeros(-(-600 // cpu_rows.BLOCK), np.int32), np.full(513, -1)
    cpu_rows.find_tops(row, tops)
    assert cpu_rows.find_likely(row, tops, np.float32(-1), ids[:512]) == 512
    assert ids[:512].tolist() == list(range(512)) and ids[512] == -1


def sparse_judged(student, targets, labels_g, temperature=1.0, label_weight=0.0):
    """What compiled rows find of sparse targets, and what they should have found."""
    group = slice(0, len(labels_g))
    judge = SparseJudge(student, group, targets, labels_g, temperature, label_weight)
    found = judge.judge_group(student.product(group))
    stored_VD = student.weight if student.stored is None else student.stored
    logits_gV = (student.hidden.double() @ stored_VD.double().T).requires_grad_()
    exact = replace(targets, probs_NK=targets.probs_NK.double(), tail_N=targets.tail_N.double())
    divergence_g = temperature**2 * sparse_loss(logits_gV / temperature, exact)
    labels_loss_g = torch.nn.functional.cross_entropy(logits_gV, labels_g, reduction="none")
    losses_g = (1 - label_weight) * divergence_g + label_weight * labels_loss_g
    (slopes_gV,) = torch.autograd.grad(losses_g.sum(), logits_gV)
    return found, (losses_g.detach(), slopes_gV)


@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("samples", [0, 1, 40])
@pytest.mark.parametrize("top_k", [1, 20, 300])
def test_of_sparse_targets_losses_and_gradients_are_those_of_the_formula(
    top_k, samples, temperature, label_weight
):
    student, teacher = layers(8, 300, torch.float32)
    logits_gV = teacher.product(slice(0, 8)) / temperature
    targets = sparse_targets(logits_gV, top_k, torch.linspace(0, 0.9, 8), samples)
    labels_g = targets.ids_NK[:, 0].clone()
    labels_g[::2] = 7
    (losses_g, slopes_gV), (exact_g, exact_gV) = sparse_judged(
        student, targets, labels_g, temperature, label_weight
    )
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(slopes_gV.double(), exact_gV, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("apart", [1.0, 0.03])
@pytest.mark.parametrize("label_weight", [0.0, 0.3])
@pytest.mark.parametrize("samples", [0, 16])
def test_of_sparse_targets_bf16_gradients_are_within_one_per_cent(samples, label_weight, apart):
    student, teacher = layers(40, 5003, torch.bfloat16, apart)
    logits_gV = teacher.hidden.float() @ teacher.stored.float().T
    targets = sparse_targets(logits_gV, 24, torch.linspace(0, 0.9, 40), samples)
    (losses_g, slopes_gV), (exact_g, exact_gV) = sparse_judged(
        student, targets, torch.arange(40) * 100, 1.0, label_weight
    )
    assert slopes_gV.dtype == torch.bfloat16
    assert error(slopes_gV, exact_gV) < 0.01 and error(losses_g, exact_g) < 0.01


def test_a_certain_teachers_targets_give_finite_gradients():
    teacher_gV = torch.full((3, 300), -300.0)
    teacher_gV[:, 5] = 0
    targets = sparse_targets(teacher_gV, 8, torch.rand(3), 4)
    student = layers(3, 300, torch.float32)[0]
    for product_gV in (student.product(slice(0, 3)), teacher_gV.clone()):
        judge = SparseJudge(student, slice(0, 3), targets, torch.arange(3), 1.0, 0.0)
        assert all(tensor.isfinite().all() for tensor in judge.judge_group(product_gV))


def test_of_sparse_targets_a_loss_of_what_is_no_number_is_none():
    student, teacher = layers(4, 600, torch.bfloat16)
    targets = sparse_targets(teacher.product(slice(0, 4)).float(), 8, torch.rand(4), 4)
    student.hidden[2, 5] = torch.nan
    assert sparse_judged(student, targets, torch.arange(4))[0][0].isfinite().tolist() == [
        True,
        True,
        False,
        True,
    ]
