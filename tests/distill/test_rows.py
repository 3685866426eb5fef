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
from compress.distill import objective, rows
from compress.distill.divergences import named
from compress.distill.rows import KernelJudge, has_kernel
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
def formula_as_kernel(monkeypatch):
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
