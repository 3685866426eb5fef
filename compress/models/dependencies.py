"""What must be removed together with what: torch-pruning's graph of a model, with exact maps on its edges.

The model is on the meta device, so an 8B shape costs no memory. torch-pruning finds the operations between a model's
parameters and walks from one to all that depend on it; how indices move through an operation, which it knows for
CNNs, is `index_maps`' for every edge here.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from compress.errors import StepFailed
from compress.models.index_maps import KEPT, MIXED, ChannelMap, channel_map, count, is_split, part_map
from compress.models.marks import PRUNERS, Mark, Projection
from compress.models.tracing import Tracer, without_rotary

LENGTHS = (23, 29, 31, 37, 41, 43, 47, 53, 59, 61)
"""Numbers of tokens to choose from: one that is no size of the model tells where time is."""

Members = Iterator[tuple[nn.Parameter, int, list[tuple[int, int]]]]
"""(parameter, its dimension, [(place along it, channel of the group's root)])"""


@dataclass
class Graph:
    """A traced model: torch-pruning's graph over the marks that stand for its parameters."""

    tracer: Tracer
    dependencies: Any
    length: int

    def group(self, root: nn.Module, *, out: bool = True) -> Members:
        """Yield all that is removed with the channels of `root`, a mark of the tracer's."""
        pruner = self.dependencies.get_pruner_of_module(root)
        function = pruner.prune_out_channels if out else pruner.prune_in_channels
        group = self.dependencies.get_pruning_group(root, function, list(range(self._size(root, out))))
        for item in group.items:
            pairs = list(zip(item.idxs, item.root_idxs, strict=True))
            for parameter, dim in self._touched(item.dep):
                yield parameter, dim, pairs

    def used_as_they_are(self) -> set[nn.Parameter]:
        """Parameters that meet activations channel by channel: those of norms."""
        return {module for module in self.dependencies.module2node if isinstance(module, nn.Parameter)}

    def _size(self, root: nn.Module, out: bool) -> int:
        if isinstance(root, Projection):
            return int(root.weight.shape[root.out_dim if out else root.in_dim])
        return count(self.dependencies.module2node[root].grad_fn, 0, self.length)

    def _touched(self, dependency: Any) -> Iterator[tuple[nn.Parameter, int]]:
        target = dependency.target.module
        if isinstance(target, nn.Parameter):
            yield target, 0
        elif isinstance(target, Projection):
            out = dependency.handler.__name__ == "prune_out_channels"
            yield target.weight, target.out_dim if out else target.in_dim
            if out:
                yield from ((bias, bias.dim() - 1) for bias in target.biases)


def trace(model: Any, deadline: float) -> Graph:
    """Return the dependency graph of a transformers model on the meta device. The model is of no use afterwards.

    Raises `StepFailed` if following a group runs past `deadline` (of ``time.monotonic``), and whatever the model's
    `forward` raises where shapes depend on values.
    """
    tracer = Tracer(model.eval())
    length = _free_length(model)
    with _quiet(), without_rotary(model):
        inputs = _accepted(tracer, length)
        dependencies = _ExactGraph(length, deadline).build_dependency(
            model,
            example_inputs=inputs,
            forward_fn=lambda model, inputs: tracer.forward(inputs),
            customized_pruners=PRUNERS,
            ignored_layers=[m for m in model.modules() if not isinstance(m, Projection | Mark)],
            unwrapped_parameters=[(p, p.dim() - 1) for p in model.parameters() if not tracer.knows(p)],
            verbose=False,
        )
    return Graph(tracer, dependencies, length)


class _ExactGraph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph, whose edges get their maps before it tries to find them by inferring shapes."""

    def __init__(self, length: int, deadline: float) -> None:
        super().__init__()
        self.length, self.deadline = length, deadline

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        _map_edges(module2node, self.length, self.deadline)


def _free_length(model: Any) -> int:
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    sizes |= {value for value in vars(model.config).values() if isinstance(value, int)}
    return next(n for n in LENGTHS if not any(size in (n, 2 * n) for size in sizes))


def _accepted(tracer: Tracer, length: int) -> dict[str, Any]:
    """Return inputs that the model runs with, after it has.

    A mask of four dimensions is used as it is; making one of it would read values. A few models want two.
    """
    ids = torch.zeros((1, length), dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "use_cache": False, "return_dict": True}
    for shape in ((1, 1, length, length), (1, length)):
        asked = inputs | {"attention_mask": torch.ones(shape, device="meta")}
        try:
            tracer.find(asked)
        except Exception as error:  # a forward may raise anything on a mask it was not written for
            refused = error
        else:
            return asked
    raise refused


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass
class _Edge:
    """How torch-pruning moves indices over one edge: as they are, or each to its `moves`."""

    deadline: float
    moves: list[list[int]] | None = None

    def __call__(self, indices: list[Any]) -> list[Any]:
        if time.monotonic() > self.deadline:
            raise StepFailed(
                "following what must be pruned together took too long; is there a cycle in the graph?"
            )
        if self.moves is None:
            return indices
        if not self.moves:
            return []
        moved = {place: index for index in reversed(indices) for place in self.moves[index.idx]}
        return [index._replace(idx=place) for place, index in reversed(moved.items())]


def _map_edges(module2node: dict[Any, Any], length: int, deadline: float) -> None:
    """Give every edge its exact maps, one a direction, and keep torch-pruning's own from being computed."""
    for node in module2node.values():
        node.type = torch_pruning.ops.OPTYPE.ELEMENTWISE
        if isinstance(node.module, nn.Parameter):
            continue
        used = [(p, *f) for p, f in enumerate(node.grad_fn.next_functions) if _is_node(module2node, f[0])]
        if len(used) != len(node.inputs):
            raise ValueError("weights are used more than once in a forward pass")
        for nth, (position, before, output) in enumerate(used):
            source = node.inputs[nth]
            channels = _channels(node, position, source, before, output, length)
            backward, forward = (
                node.dependencies[nth],
                _forward(source, node, node.inputs[:nth].count(source)),
            )
            # What is used by many is not removed with one of them: a norm over head_dim is one for all heads.
            one_way = isinstance(source.module, nn.Parameter) or channels.is_broadcast
            forward.index_mapping = [_Edge(deadline, [] if one_way else channels.forward), None]
            backward.index_mapping = [_Edge(deadline, channels.backward), None]


def _is_node(module2node: dict[Any, Any], function: Any) -> bool:
    """Whether torch-pruning follows an input: all but parameters that marks stand for."""
    if function is None:
        return False
    return not hasattr(function, "variable") or function.variable in module2node


def _forward(source: Any, target: Any, nth: int) -> Any:
    """Return the dependency on the `nth` use that `target` makes of `source`."""
    to_outputs = source.dependencies[len(source.inputs) :]
    return [dependency for dependency in to_outputs if dependency.target is target][nth]


def _channels(node: Any, position: int, source: Any, before: Any, output: int, length: int) -> ChannelMap:
    """Return the map between the channels of `source` and those of `node`, which consumes it."""
    size = count(before, output, length)
    if isinstance(source.module, Projection) and size != source.module.weight.shape[source.module.out_dim]:
        return MIXED
    if is_split(before):
        return part_map(before, output, length)
    if isinstance(node.module, Projection):
        fits = size == node.module.weight.shape[node.module.in_dim]
        return KEPT if fits else MIXED
    return channel_map(node.grad_fn, position, length)
