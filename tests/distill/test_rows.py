"""Learning from whole rows: when, and that what a kernel is given makes the recipe's loss.

The kernels' own numbers are tested in `test_cpu_rows`, and in `test_gpu_rows`, which needs triton; here its formula
stands for it.

Shapes: g tokens of a group, V vocabulary.
"""

import sys
from types import SimpleNamespace

import pytest
import torch

from compress import plugins
from compress.data.batch import Batch
from compress.distill import cached_objective, objective, rows
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.kernel_trial import LossKernel
from compress.distill.rows import KernelJudge, has_kernel, over_rows
from compress.distill.targets import sparse_targets
from compress.train import fused
from compress.train.projection import Projection
from tests.distill.test_losses import setting
from tests.distill.test_objective import IDS_BT, distillation, models


def slow_rows(
    student_gV,
    teacher_gV,
    targets_g,
    *,
    biases=(None, None),
    softcaps=(None, None),
    temperature=1.0,
    label_weight=0.0,
):
    """The recipe's formula on whole products in fp64: losses, and gradients in the student's product."""
    leaf_gV = student_gV.double().requires_grad_()
    q_gV, p_gV = (
        product_gV if bias_V is None else product_gV + bias_V.double()
        for product_gV, bias_V in zip((leaf_gV, teacher_gV.double()), biases, strict=True)
    )
    q_gV, p_gV = (
        logits_gV if cap is None else cap * torch.tanh(logits_gV / cap)
        for logits_gV, cap in zip((q_gV, p_gV), softcaps, strict=True)
    )
    log_q_gV, log_p_gV = ((logits_gV / temperature).log_softmax(-1) for logits_gV in (q_gV, p_gV))
    kl_g = (log_p_gV.exp() * (log_p_gV - log_q_gV)).sum(-1)
    labels_g = -q_gV.log_softmax(-1).gather(-1, targets_g[:, None])[:, 0]
    losses_g = (1 - label_weight) * temperature**2 * kl_g + label_weight * labels_g
    (slopes_gV,) = torch.autograd.grad(losses_g.sum(), leaf_gV)
    return losses_g.detach(), slopes_gV


@pytest.fixture
def untried(monkeypatch):
    """Take kernels as they are: a trial's rows would be counted, too."""
    monkeypatch.setattr(LossKernel, "works", lambda *_: True)


@pytest.fixture
def formula_as_kernel(monkeypatch, untried):
    """Return how many groups it has judged, as a list of their sizes."""
    seen = []

    def kl_of_rows(student_gV, teacher_gV, targets_g, slopes_gV, **settings):
        seen.append(len(student_gV))
        with torch.enable_grad():
            losses_g, found_gV = slow_rows(student_gV, teacher_gV, targets_g, **settings)
        slopes_gV.copy_(found_gV)
        return losses_g

    monkeypatch.setitem(sys.modules, "compress.distill.gpu_rows", SimpleNamespace(kl_of_rows=kl_of_rows))
    monkeypatch.setattr(objective, "has_kernel", lambda *_: True)
    monkeypatch.setattr(KernelJudge, "judge_group", KernelJudge._by_gpu)
    return seen


@pytest.mark.parametrize("label_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_kernels_loss_and_gradients_are_those_of_tiles(
    formula_as_kernel, temperature, label_weight, monkeypatch
):
    monkeypatch.setattr(fused, "GROUP_BYTES", {"cpu": 4 * 259 * 20})
    student, teacher = models()
    for seed, model in enumerate((student, teacher)):
        chance = torch.Generator().manual_seed(seed)
        model.lm_head.bias = torch.nn.Parameter(torch.randn(259, generator=chance, dtype=torch.float64))
    distilling, weights = distillation(student, teacher, temperature, label_weight), [*student.parameters()]
    ours, num_tokens = distilling(Batch(IDS_BT))
    assert len(formula_as_kernel) > 1 and sum(formula_as_kernel) == num_tokens
    monkeypatch.setattr(objective, "has_kernel", lambda *_: False)
    theirs, _ = distilling(Batch(IDS_BT))
    torch.testing.assert_close(ours, theirs)
    pairs = zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True)
    for our, their in pairs:
        torch.testing.assert_close(our, their)


class Signals:
    """What a teacher said of `IDS_BT`, its only rows."""

    def __init__(self, teacher, temperature):
        logits_NV = teacher(input_ids=IDS_BT).logits[:, :-1].flatten(0, 1).detach()
        places_N = torch.linspace(0, 0.9, len(logits_NV))
        self.targets = sparse_targets(logits_NV.float() / temperature, 12, places_N, 8)
        self.about = SimpleNamespace(vocabulary=logits_NV.shape[1], temperature=temperature)

    def at(self, rows):
        return self.targets


def cached(student, teacher, temperature, label_weight):
    return CachedDistillation(student, Signals(teacher, temperature), label_weight, 259)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("temperature", "label_weight"), [(1.0, 0.0), (4.0, 0.3)])
@pytest.mark.parametrize("make", [distillation, cached])
def test_compiled_rows_loss_and_gradients_are_those_of_tiles(
    make, temperature, label_weight, precision, monkeypatch, untried
):
    """Of several groups, and a student with more ids than its teacher."""
    monkeypatch.setattr(fused, "GROUP_BYTES", {"cpu": 4 * 264 * 20})
    student, teacher = models(torch.float32, vocab_size=272)
    objective_, weights = make(student, teacher, temperature, label_weight), [*student.parameters()]
    batch, groups, found = Batch(IDS_BT, rows=torch.arange(len(IDS_BT))), [], []
    judged = over_rows
    monkeypatch.setattr(rows, "over_rows", lambda *given: (groups.append(given[-1]), judged(*given)))
    for has in (True, False):
        if not has:
            for module, name in ((objective, "has_kernel"), (cached_objective, "has_compiled_rows")):
                monkeypatch.setattr(module, name, lambda *_: False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            total, num_tokens = objective_(batch)
        found.append((total.detach(), torch.autograd.grad(total, weights)))
    assert len(groups) > 1 and sum(groups) == num_tokens
    (our_total, ours), (their_total, theirs) = found
    torch.testing.assert_close(our_total, their_total, rtol=1e-5 if precision == "fp32" else 1e-3, atol=0)
    for our, their in zip(ours, theirs, strict=True):
        assert float((our - their).norm() / their.norm()) < (1e-4 if precision == "fp32" else 0.02)


def test_labels_alone_and_what_is_held_out_are_judged_in_tiles(formula_as_kernel):
    distillation(*models(), 1.0, 1.0)(Batch(IDS_BT))
    distillation(*models()).held_out(Batch(IDS_BT))
    assert not formula_as_kernel


def layer(dtype=torch.bfloat16, *, on_gpu=False, **parts):
    hidden = SimpleNamespace(is_cuda=True) if on_gpu else torch.zeros(2, 3, dtype=dtype)
    found = Projection(hidden, torch.zeros(4, 3, dtype=dtype), **parts)
    return SimpleNamespace(hidden=hidden, product_dtype=dtype) if on_gpu else found


ON_GPU = layer(torch.float32, on_gpu=True)
FORWARD_KL = named("forward_kl")


@pytest.mark.parametrize(
    "layers", [(ON_GPU, ON_GPU), (layer(), layer(torch.float32))], ids=["gpu", "processor"]
)
@pytest.mark.parametrize("name", plugins.available("distill.losses"))
def test_forward_kl_alone_has_a_kernel(name, layers, monkeypatch):
    monkeypatch.setattr(rows, "_has_triton", lambda: True)
    assert has_kernel(named(setting(name)), *layers) == (name == "forward_kl")


def test_on_a_gpu_there_is_no_kernel_in_fp64_or_without_triton(monkeypatch):
    monkeypatch.setattr(rows, "_has_triton", lambda: True)
    assert not has_kernel(FORWARD_KL, layer(torch.float64, on_gpu=True), ON_GPU)
    monkeypatch.setattr(rows, "_has_triton", lambda: False)
    assert not has_kernel(FORWARD_KL, ON_GPU, ON_GPU)


@pytest.mark.parametrize(
    "other",
    [
        layer(torch.float64),
        layer(torch.float16),
        layer(bias=torch.zeros(4)),
        layer(softcap=2.0),
        layer(stored=torch.zeros(4, 3, dtype=torch.float64)),
    ],
    ids=["fp64", "fp16", "bias", "softcap", "stored in fp64"],
)
def test_a_processors_kernel_reads_plain_rows_only(other):
    assert has_kernel(FORWARD_KL, layer(), layer())
    assert not has_kernel(FORWARD_KL, other, layer()) and not has_kernel(FORWARD_KL, layer(), other)
