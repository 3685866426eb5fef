"""Modules that stand for a model's parameters in its dependency graph, and torch-pruning's names for their sides."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc

Role = Literal["query", "key", "value", "output"]
"""What a tensor is to attention."""


class _Project(torch.autograd.Function):
    """A linear layer's shape in one node, so that no channel of the result is taken for one of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out_features: int) -> Tensor:
        return x.new_empty((*x.shape[:-1], out_features))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise AssertionError("a traced graph is only read: no gradient flows through it")


class Projection(nn.Module):
    """Marks where a weight is multiplied with: the channels of its two dimensions."""

    def __init__(self, weight: nn.Parameter, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight, self.in_dim, self.out_dim = weight, in_dim, out_dim
        self.biases: list[nn.Parameter] = []

    def forward(self, x: Tensor) -> Tensor:
        return _Project.apply(x, self.weight, self.weight.shape[self.out_dim])  # type: ignore[no-any-return, no-untyped-call]


class Table(Projection):
    """Marks an embedding: rows are looked up, columns are channels."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.new_empty((*ids.shape, 1), dtype=self.weight.dtype))


class Mark(nn.Module):
    """Marks a tensor that has a role in attention."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


class _ProjectionPruner(BasePruningFunc):  # type: ignore[misc]
    """Tells in from out; nothing is ever pruned here."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.weight.shape[layer.out_dim])

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.weight.shape[layer.in_dim])


class _MarkPruner(_ProjectionPruner):
    """A channel that goes in comes out."""

    prune_in_channels = _ProjectionPruner.prune_out_channels

    def get_out_channels(self, layer: Any) -> None:  # type: ignore[override]
        return None

    get_in_channels = get_out_channels  # type: ignore[assignment]


PRUNERS = {Projection: _ProjectionPruner(), Table: _ProjectionPruner(), Mark: _MarkPruner()}
"""What torch-pruning has to know of them."""
