"""What the fused loss holds at once on a GPU, counted on tensors without data.

Shapes: N tokens, D hidden size, V vocabulary.
"""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from compress.distill.divergences import named
from compress.distill.rows import KernelJudge
from compress.train import projection
from compress.train.fused import fused_loss
from compress.train.projection import Projection

N, D, V = 8_192, 4_096, 128_256
GB = 1e9


class Storages(TorchDispatchMode):
    """Counts the bytes that are alive after every operation, beside those of some tensors."""

    def __init__(self, *given):
        super().__init__()
        self.given = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in given}
        self.alive, self.peak_bytes = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.given:
                    self.alive.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.alive = {key: each for key, each in self.alive.items() if not each[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(num_bytes for _, num_bytes in self.alive.values()))
        return found


@pytest.fixture
def under_autocast(monkeypatch):
    """There is none for tensors without data, nor a kernel."""
    monkeypatch.setattr(projection, "product_dtype", lambda device, wanted: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    kernel = SimpleNamespace(
        kl_of_rows=lambda student_gV, *args, **kwargs: student_gV.new_empty(len(student_gV))
    )
    monkeypatch.setitem(sys.modules, "compress.distill.gpu_rows", kernel)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device="meta", dtype=dtype)


def peak_gb(weight_dtype, by_kernel):
    """Of loss and gradients, beside hidden states and output matrices. A tensor that is read would raise."""
    inputs = [empty(N, D).requires_grad_(), empty(V, D, dtype=weight_dtype).requires_grad_()]
    teacher, targets_N, divergence = (
        Projection(empty(N, D), empty(V, D)),
        empty(N, dtype=torch.long),
        named("forward_kl"),
    )

    def criterion(student, group):
        product_gV = teacher.product(group)
        if by_kernel:
            return KernelJudge(student, teacher, product_gV, group, targets_N[group], 1.0, 0.0)

        def judge(found, tile):
            theirs_nV = product_gV[tile.start - group.start : tile.stop - group.start]
            return divergence(found, teacher.distribution(theirs_nV, tile))

        return judge

    with Storages(*inputs, teacher.hidden, teacher.weight) as storages:
        torch.autograd.grad(fused_loss(*inputs, None, criterion), inputs)
    return storages.peak_bytes / GB


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "tiles"])
def test_distilling_8192_tokens_over_128256_ids_holds_less_than_3_gb(under_autocast, by_kernel):
    """The gradient alone is 1.1 GB."""
    assert 1.1 < peak_gb(torch.bfloat16, by_kernel) < 3


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "tiles"])
def test_an_output_matrix_in_fp32_adds_its_bf16_copy_and_the_rest_of_its_gradient(under_autocast, by_kernel):
    added = peak_gb(torch.float32, by_kernel) - peak_gb(torch.bfloat16, by_kernel)
    assert added < 2.1 * V * D * 2 / GB
