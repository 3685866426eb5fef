"""The order of elimination against its definition, and what a GPU is asked for on the way."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from compress.prune.elimination import elimination_costs
from tests.prune.pretended import DEVICE, PretendedGPU

WAITS = {
    Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.nonzero, Tensor.numpy,
    Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__,
}  # fmt: skip
"""What makes the processor wait for all that a GPU was given to do."""


def problem(num_inputs, seed=0):
    """A gram matrix of inputs of which some predict others, and the products of a map's weights."""
    generator = torch.Generator().manual_seed(seed)
    x_NC = torch.randn(3 * num_inputs, num_inputs, generator=generator, dtype=torch.float64)
    x_NC[:, ::3] += x_NC[:, 1:2]
    weight_OC = torch.randn(7, num_inputs, generator=generator, dtype=torch.float64)
    return x_NC.T @ x_NC / len(x_NC), weight_OC.T @ weight_OC


def lost_by_definition(gram_CC, sensitivity_CC, width, damping):
    """Remove the cheapest block of all that are left, by matrices made anew each time."""
    count = len(gram_CC) // width
    gram_CC = gram_CC + damping * gram_CC.diagonal().mean() * torch.eye(len(gram_CC), dtype=gram_CC.dtype)
    inverse, sensitivity = torch.linalg.inv(gram_CC), sensitivity_CC
    left, lost, total = list(range(count)), torch.zeros(count, dtype=torch.float64), 0.0
    while left:
        parts = [torch.arange(k * width, (k + 1) * width) for k in range(len(left))]
        costs = [
            float(torch.linalg.solve(inverse[s][:, s], sensitivity[s][:, s]).diagonal().sum()) for s in parts
        ]
        place = min(range(len(left)), key=costs.__getitem__)
        went = parts[place]
        kept = torch.cat([s for s in parts if s is not went] or [went[:0]])
        refit_WK = -torch.linalg.solve(inverse[went][:, went], inverse[went][:, kept])
        inverse = inverse[kept][:, kept] + inverse[kept][:, went] @ refit_WK
        half_WK = sensitivity[went][:, kept] + sensitivity[went][:, went] @ refit_WK / 2
        sensitivity = sensitivity[kept][:, kept] + refit_WK.T @ half_WK + half_WK.T @ refit_WK
        total += costs[place]
        lost[left.pop(place)] = total
    return lost / float((gram_CC * sensitivity_CC).sum())


@pytest.mark.parametrize(("num_inputs", "width"), [(30, 1), (24, 3), (64, 2)])
def test_blocks_go_in_the_order_of_what_their_removal_costs_then(num_inputs, width):
    """One to a round: whatever it chooses among, the cheapest is first."""
    gram_CC, sensitivity_CC = problem(num_inputs)
    found = elimination_costs(gram_CC, sensitivity_CC, width, 1e-9)
    expected = lost_by_definition(gram_CC, sensitivity_CC, width, 1e-9)
    assert torch.equal(found.argsort(), expected.argsort())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_what_is_chosen_in_one_round_costs_what_it_would_by_itself():
    """Of 128 inputs four go in a round: each is scored as if those before it were gone."""
    gram_CC, sensitivity_CC = problem(128)
    found = elimination_costs(gram_CC, sensitivity_CC, 1, 1e-9)
    exact = lost_by_definition(gram_CC, sensitivity_CC, 1, 1e-9)
    assert len(set(found.tolist())) == 128
    torch.testing.assert_close(found.sort().values, exact.sort().values, rtol=0.02, atol=1e-6)


class CountingGPU(PretendedGPU):
    """Counts what is done on the GPU, and how often something waits for it."""

    def __init__(self):
        super().__init__()
        self.done, self.waits = Counter(), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor) and self.has(args[0]):
            self.done[getattr(func, "__name__", str(func))] += 1
            self.waits += func in WAITS
        return super().__torch_function__(func, types, args, kwargs)


def on_gpu(num_inputs, width):
    gram_CC, sensitivity_CC = problem(num_inputs)
    with CountingGPU() as gpu:
        found = elimination_costs(gram_CC.to(DEVICE), sensitivity_CC.to(DEVICE), width, 1e-2)
    assert torch.equal(found, elimination_costs(gram_CC, sensitivity_CC, width, 1e-2))
    return gpu


@pytest.mark.parametrize("width", [1, 2])
def test_a_gpu_is_asked_as_much_in_a_round_of_eight_removals_as_in_one_of_two(width):
    few, many = on_gpu(64 * width, width), on_gpu(256 * width, width)
    assert many.done == few.done
    assert 32 <= many.waits == few.waits <= 6 * 32 + 3
