"""A kernel that cannot be had costs time, not the run: tiles take its place, and the record says so."""

import json

import pytest
import torch

from compress.data.batch import Batch
from compress.distill import cpu_rows, objective, step
from compress.distill.kernel_trial import KEPT, LossKernel
from compress.distill.rows import KernelJudge, SparseJudge
from tests.distill.test_objective import IDS_BT, distillation, models
from tests.distill.test_rows import cached
from tests.train.inputs import context, parent

FAILURES = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    ImportError("libcuda.so.1: cannot open shared object file"),
    OSError("No space left on device"),
]


def made(make, kernel):
    student, teacher = models(torch.float32)
    made_of = make(student, teacher, 1.0, 0.3)
    made_of._kernel = kernel
    return made_of, [*student.parameters()]


def learned(make, kernel):
    """The loss of a batch, and its gradients."""
    objective_, weights = made(make, kernel)
    loss, _ = objective_(Batch(IDS_BT, rows=torch.arange(len(IDS_BT))))
    return loss.detach(), torch.autograd.grad(loss, weights)


def judge_of(make):
    return KernelJudge if make is distillation else SparseJudge


def refusing(error):
    def refuse(self, product_gV):
        raise error

    return refuse


both_ways = pytest.mark.parametrize("make", [distillation, cached])


@both_ways
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_where_a_kernel_cannot_be_built_tiles_compute_the_same_loss(make, error, monkeypatch, tmp_path):
    warned = []
    right = LossKernel(tmp_path, warned.append)
    expected, theirs = learned(make, right)
    assert right.facts() == {"loss_kernel": "compiled rows"} and not warned
    monkeypatch.setattr(judge_of(make), "judge_group", refusing(error))
    kernel = LossKernel(None, warned.append)
    for _ in range(2):
        loss, ours = learned(make, kernel)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        for our, their in zip(ours, theirs, strict=True):
            assert float((our - their).norm() / their.norm()) < 1e-4
    assert kernel.facts()["loss_kernel"] == "tiles"
    assert str(error) in kernel.facts()["loss_kernel_why"]
    assert len(warned) == 1 and "in tiles, which takes longer" in warned[0] and str(error) in warned[0]


@both_ways
def test_a_kernel_that_computes_something_else_is_not_used(make, monkeypatch):
    right, warned = judge_of(make).judge_group, []

    def halved(self, product_gV):
        losses_g, slopes_gV = right(self, product_gV)
        return losses_g, slopes_gV / 2

    monkeypatch.setattr(judge_of(make), "judge_group", halved)
    kernel = LossKernel(None, warned.append)
    learned(make, kernel)
    assert kernel.facts()["loss_kernel_why"] == "its gradients are not those of the formula"
    assert len(warned) == 1


@both_ways
def test_memory_that_runs_out_is_no_missing_kernel(make, monkeypatch):
    monkeypatch.setattr(judge_of(make), "judge_group", refusing(torch.cuda.OutOfMemoryError("full")))
    kernel = LossKernel(None, pytest.fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        learned(make, kernel)
    assert kernel.facts() == {"loss_kernel": "tiles"}  # it was not decided


def test_a_resumed_process_stays_with_tiles_and_says_so_again(monkeypatch, tmp_path):
    with monkeypatch.context() as broken:
        broken.setattr(KernelJudge, "judge_group", refusing(FAILURES[0]))
        first = LossKernel(tmp_path, lambda _: None)
        in_tiles, _ = learned(distillation, first)
    monkeypatch.setattr(
        KernelJudge, "judge_group", lambda *_: pytest.fail("the kernel is back, and was used")
    )
    warned = []
    resumed = LossKernel(tmp_path, warned.append)
    loss, _ = learned(distillation, resumed)
    assert torch.equal(loss, in_tiles)
    assert resumed.facts() == first.facts() and len(warned) == 1
    assert "bit_exact" not in resumed.facts()


def test_a_kernel_that_is_gone_in_a_resumed_process_ends_the_claim_of_the_same_bits(monkeypatch, tmp_path):
    learned(distillation, LossKernel(tmp_path))
    assert json.loads((tmp_path / KEPT).read_text())["kernel"] == "compiled rows"
    monkeypatch.setattr(KernelJudge, "judge_group", refusing(FAILURES[0]))
    for _ in range(2):  # and so it stays, however often it is resumed
        warned = []
        kernel = LossKernel(tmp_path, warned.append)
        learned(distillation, kernel)
        assert kernel.facts()["bit_exact"] is False
        assert len(warned) == 1 and "may differ in its last bits" in warned[0]


def test_numba_that_cannot_compile_is_found_by_the_trial(monkeypatch):
    class Uncompiled:
        overloads = ()
        stats = type("Stats", (), {"cache_path": None})

        @staticmethod
        def compile(_types):
            raise RuntimeError("LLVM is not what it was")

    monkeypatch.setattr(cpu_rows, "kl_of_rows", Uncompiled)
    warned = []
    learned(distillation, LossKernel(None, warned.append))
    assert "LLVM is not what it was" in warned[0]


def test_in_bf16_the_trial_finds_the_kernel_right_too():
    kernel = LossKernel(None, pytest.fail)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for make in (distillation, cached):
            learned(make, kernel)
    assert kernel.facts() == {"loss_kernel": "compiled rows"}


def test_what_has_no_kernel_is_not_tried(monkeypatch):
    monkeypatch.setattr(objective, "has_kernel", lambda *_: False)
    kernel = LossKernel(None, pytest.fail)
    monkeypatch.setattr(kernel, "works", pytest.fail)
    learned(distillation, kernel)
    assert kernel.facts() == {"loss_kernel": "tiles"}


def test_a_trial_leaves_chance_as_it_was():
    before = torch.get_rng_state()
    learned_with = LossKernel(None, pytest.fail)
    student, teacher = models(torch.float32)
    torch.set_rng_state(before)
    objective_ = distillation(student, teacher, 1.0, 0.0)
    objective_._kernel = learned_with
    objective_(Batch(IDS_BT))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_without_its_kernel_ends_with_the_same_loss_and_says_so(monkeypatch, tmp_path):
    teacher = parent(tmp_path / "teacher", "qwen3", seed=5)
    student = parent(tmp_path / "student")
    config = step.Config(
        tokens=16 * 4 * 4, batch_tokens=16 * 4, learning_rate=3e-3, label_weight=0.3, precision="fp32"
    )
    found = {}
    for name in ("kernel", "tiles"):
        if name == "tiles":
            monkeypatch.setattr(KernelJudge, "judge_group", refusing(FAILURES[0]))
        given = context(tmp_path / name / "result", teacher=teacher)
        found[name] = step.run(student, config, given).facts, given.warnings
    (facts, warned), (in_tiles, told) = found["kernel"], found["tiles"]
    assert facts["loss_kernel"] == "compiled rows" and in_tiles["loss_kernel"] == "tiles"
    assert in_tiles["loss"] == pytest.approx(facts["loss"], rel=1e-4)
    assert in_tiles["bit_exact"] and facts["bit_exact"]
    assert not any("kernel" in each for each in warned)
    assert len([each for each in told if "Failed to find C compiler" in each]) == 1
