"""The maps against the operations themselves, run on numbers that say where they come from."""

import pytest
import torch

from compress.models.index_maps import KEPT, MIXED, channel_map, count, is_split, part_map

TIME = 5
"""Of tensors ``[1, TIME, 4, 6]``: 24 channels."""


def numbered(*shape):
    """A tensor whose every value is the number of its channel."""
    flat = [1 if size == TIME else size for size in shape]
    return torch.arange(24.0).view(flat).expand(shape).clone().requires_grad_()


OPERATIONS = {
    "slice": lambda x: x[..., 1:5],
    "slice with steps": lambda x: x[..., ::2],
    "slice of heads": lambda x: x[:, :, -2:],
    "select": lambda x: x[..., -1],
    "transpose of time": lambda x: x.transpose(1, 2),
    "transpose of channels": lambda x: x.transpose(2, 3),
    "permute": lambda x: x.permute(0, 3, 2, 1),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "expand": lambda x: x[:, :, :, None].expand(1, TIME, 4, 3, 6),
    "view": lambda x: x.view(1, TIME, 24),
    "chunk": lambda x: x.chunk(3, dim=-1)[1],
    "split": lambda x: x.split([1, 2, 1], dim=2)[1],
    "unbind": lambda x: x.unbind(-1)[4],
    "elementwise": lambda x: x.exp().log(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_map_says_what_the_operation_does(operation):
    x = numbered(1, TIME, 4, 6)
    y = operation(x.clone())
    time = [size == TIME for size in y.shape].index(True)
    expected = y.select(time, 0).round().long().flatten().tolist()
    function, channels = y.grad_fn, list(range(len(expected)))
    while not function.name().startswith("Clone"):
        split = is_split(function)
        step = part_map(function, y.output_nr, TIME) if split else channel_map(function, 0, TIME)
        channels = channels if step is KEPT else [step.backward[c][0] for c in channels]
        function = function.next_functions[0][0]
    assert channels == expected


def test_joined_channels_stand_behind_each_other():
    a, b = numbered(1, TIME, 4, 6), numbered(1, TIME, 4, 6)
    joined = torch.cat([a * 1, b * 1], dim=-1).grad_fn
    second = channel_map(joined, 1, TIME)
    assert second.forward[0] == [6]
    assert second.forward[6] == [18]  # the second head starts after the first one of both
    assert second.backward[0] == []


def test_what_is_broadcast_reaches_many_channels():
    weight = torch.ones(6, requires_grad=True)
    product = (numbered(1, TIME, 4, 6) * (weight * 1)).grad_fn
    assert channel_map(product, 0, TIME) is KEPT
    shared = channel_map(product, 1, TIME)
    assert shared.is_broadcast
    assert shared.forward[2] == [2, 8, 14, 20]


@pytest.mark.parametrize(
    "mixing",
    [lambda x: x @ torch.ones(24, 24), lambda x: x.mean(-1, keepdim=True), lambda x: x.sum(-1)],
    ids=["matmul", "mean", "sum"],
)
def test_mixed_channels_have_no_map(mixing):
    y = mixing(numbered(1, TIME, 24) * 1)
    function = y.grad_fn
    while function.name() not in ("MmBackward0", "MeanBackward1", "SumBackward1"):
        function = function.next_functions[0][0]
    assert channel_map(function, 0, TIME) is MIXED


def test_time_and_batch_are_not_channels():
    assert count((numbered(1, TIME, 4, 6) * 1).grad_fn, 0, TIME) == 24
    assert channel_map((numbered(1, TIME, 24) * 1)[:, 2:4].grad_fn, 0, TIME) is KEPT
