"""Which channel of an operation's result comes from which channel of its input, read from the autograd graph.

A tensor's channels are all its places but batch and time, flattened in memory order: a view of ``[B, T, 512]`` as
``[B, T, 8, 64]`` and its transpose ``[B, 8, T, 64]`` have the same 512 channels. Rearranging operations are replayed
on a tensor of channel numbers, which gives the map exactly, whatever the dimension.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

MIXING = ("Mm", "Addmm", "Bmm", "Baddbmm", "Convolution", "ScaledDotProduct", "Fft", "Einsum", "Linear")
"""Operations after which a channel depends on all channels before it: no map."""

LARGEST = 1 << 20
"""More channels than any projection has: the state of a recurrence, a table of distances. They are not followed."""


@dataclass
class ChannelMap:
    """The two directions between an input's channels and a result's: for each channel, those it moves to.

    ``None``: all stay as they are. Empty: none comes from, or goes to, another.
    """

    forward: list[list[int]] | None
    backward: list[list[int]] | None
    is_broadcast: bool = False


KEPT = ChannelMap(None, None)
"""Every channel stays where it is."""

MIXED = ChannelMap([], [])
"""No result comes from one channel."""


def from_sources(source_R: Tensor, num_inputs: int) -> ChannelMap:
    """Return the map that takes each result from the given input channel; from none where that is -1."""
    sources: list[int] = source_R.tolist()
    if sources == list(range(num_inputs)):
        return KEPT
    forward: list[list[int]] = [[] for _ in range(num_inputs)]
    for result, source in enumerate(sources):
        if source >= 0:
            forward[source].append(result)
    backward = [[source] if source >= 0 else [] for source in sources]
    return ChannelMap(forward, backward, is_broadcast=any(len(results) > 1 for results in forward))


def channel_map(function: Any, position: int, time: int) -> ChannelMap:
    """Return how the channels of an operation's input number `position` become the channels of its result.

    `function` is the autograd node of the result, `time` the length of the (only) time dimension. An operation
    with several results (split, unbind) keeps its input's channels; `part_map` says which of them a result has.
    """
    before, after = shape_of(*function.next_functions[position]), shape_of(function, 0)
    if is_split(function):
        return KEPT
    name = function.name().rstrip("0123456789").removesuffix("Backward")
    if name.startswith(MIXING) or max(_count(before, time), _count(after, time)) > LARGEST:
        return MIXED
    channels = _numbers(before, time)
    if name in ("Cat", "Stack"):
        return from_sources(_joined(function, name, position, after, time), channels.numel())
    replay = REPLAYS.get(name)
    if replay is not None:
        return from_sources(replay(function, channels).reshape(-1), channels.numel())
    return _elementwise(channels, after, time)


def part_map(function: Any, part: int, time: int) -> ChannelMap:
    """Return how the channels of a split tensor become the channels of one of its parts."""
    channels = _numbers(shape_of(*function.next_functions[0]), time)
    dim = _dim(function._saved_dim, channels.dim())
    if function.name().startswith("Unbind"):
        chosen = channels.select(dim, min(part, channels.shape[dim] - 1))
    else:
        sizes = [m.shape[dim] for m in function._input_metadata]
        sizes = [1 if size == time else size for size in sizes]
        along_time = sum(sizes) != channels.shape[dim]
        chosen = channels if along_time else channels.narrow(dim, sum(sizes[:part]), sizes[part])
    return from_sources(chosen.reshape(-1), channels.numel())


def is_split(function: Any) -> bool:
    return bool(function.name().startswith(("Split", "Unbind")))


def shape_of(function: Any, output: int) -> tuple[int, ...]:
    """Return the shape of a tensor, from the autograd node that made it."""
    if hasattr(function, "variable"):
        return tuple(function.variable.shape)
    return tuple(function._input_metadata[output].shape)


def count(function: Any, output: int, time: int) -> int:
    """Return how many channels a tensor has."""
    return _count(shape_of(function, output), time)


def _count(shape: tuple[int, ...], time: int) -> int:
    return prod(size for size in shape if size != time)


def _numbers(shape: tuple[int, ...], time: int) -> Tensor:
    flat = [1 if size == time else size for size in shape]
    return torch.arange(prod(flat)).view(flat)


def _signed(saved: int) -> int:
    """Autograd keeps negative numbers as unsigned ones of 64 bits."""
    return saved - 2**64 if saved >= 2**63 else saved


def _dim(saved: int, num_dims: int) -> int:
    return _signed(saved) % num_dims


def _joined(function: Any, name: str, position: int, after: tuple[int, ...], time: int) -> Tensor:
    results = _numbers(after, time)
    dim = _dim(function._saved_dim, results.dim())
    sources = [f for f, _ in function.next_functions]
    if after[dim] == time:
        return results.reshape(-1)
    if name == "Stack":
        chosen = results.select(dim, position)
    else:
        known = [shape_of(f, o)[dim] if f is not None else 0 for f, o in function.next_functions]
        if sources.count(None) == 1:  # an input without gradient: what is left is its size
            known[sources.index(None)] = after[dim] - sum(known)
        chosen = results.narrow(dim, sum(known[:position]), known[position])
    moved = torch.full((results.numel(),), -1)
    moved[chosen.reshape(-1)] = torch.arange(chosen.numel())
    return moved


def _elementwise(channels: Tensor, after: tuple[int, ...], time: int) -> ChannelMap:
    """Same number of channels: the same channels. Otherwise it was broadcast, or summed up and has no map."""
    if channels.numel() == _count(after, time):
        return KEPT
    if channels.numel() > 1:
        with suppress(RuntimeError):  # not the shape of something broadcast
            spread = channels.expand([1 if size == time else size for size in after])
            return from_sources(spread.reshape(-1), channels.numel())
    return MIXED


def _slice(function: Any, channels: Tensor) -> Tensor:
    dim = _dim(function._saved_dim, channels.dim())
    if channels.shape[dim] != function._saved_self_sym_sizes[dim]:
        return channels  # along time
    window = slice(_signed(function._saved_start), _signed(function._saved_end), function._saved_step)
    return channels[(slice(None),) * dim + (window,)]


def _select(function: Any, channels: Tensor) -> Tensor:
    dim = _dim(function._saved_dim, channels.dim())
    if channels.shape[dim] != function._saved_self_sym_sizes[dim]:
        return channels
    return channels.select(dim, _signed(function._saved_index))


def _transpose(function: Any, channels: Tensor) -> Tensor:
    dims = (_dim(saved, channels.dim()) for saved in (function._saved_dim0, function._saved_dim1))
    return channels.transpose(*dims)


REPLAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "Slice": _slice,
    "Select": _select,
    "Transpose": _transpose,
    "T": lambda function, channels: channels.t(),
    "Permute": lambda function, channels: channels.permute(
        [_dim(saved, channels.dim()) for saved in function._saved_dims]
    ),
    "Repeat": lambda function, channels: channels.repeat(function._saved_repeats),
}
"""Operations that move channels, replayed on their numbers."""
