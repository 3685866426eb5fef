"""Sampled ids do not depend on the order in which a GPU adds."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compress.distill.targets import running_sums, sparse_targets
from tests.prune.pretended import DEVICE, PretendedGPU


class NoRunningSums(TorchFunctionMode):
    """Refuses what has no deterministic algorithm on the pretended GPU."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu, self.on_processor = gpu, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.cumsum:
            assert not self.gpu.has(args[0]), (
                "cumsum_cuda_kernel does not have a deterministic implementation"
            )
            self.on_processor += 1
        return func(*args, **(kwargs or {}))


def test_ids_are_sampled_on_a_gpu_as_on_a_processor():
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(7, 1000, generator=generator)
    places_N = torch.rand(7, generator=generator)
    expected = sparse_targets(logits_NV.clone(), 8, places_N, 4)
    with PretendedGPU() as gpu, NoRunningSums(gpu) as watched:
        there = sparse_targets(logits_NV.to(DEVICE), 8, places_N.to(DEVICE), 4)
        assert gpu.has(there.ids_NK)
        found = there.to("cpu")
    assert watched.on_processor == 2
    assert torch.equal(found.ids_NK, expected.ids_NK) and torch.equal(found.probs_NK, expected.probs_NK)


def test_running_sums_are_those_of_each_value():
    masses = torch.tensor([[0.25, 0.0, 0.5], [1.0, 1e-12, 0.0]])
    little = 1 + float(masses[1, 1])
    assert running_sums(masses).tolist() == [[0.25, 0.25, 0.75], [1.0, little, little]]
