"""Running a model without weights so that its graph shows what its widths depend on, and nothing else.

Linear layers and embeddings become marks (`marks`). Three things are replaced because the graph gets lost in them:
rotary embeddings by the identity, attention by a stand-in that marks its query, key, value and output, and fused
experts by two projections around their own activation.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from compress.models.marks import Mark, Projection, Role, Table

ATTENTION = "compress_axes"
"""The name the stand-in is registered under with transformers."""


@dataclass
class Attention:
    """What one call of attention was given."""

    module: nn.Module
    shapes: dict[Role, tuple[int, ...]]
    marks: dict[Role, Mark]

    @property
    def head_sizes(self) -> set[int]:
        """The dimensions its queries, keys and values have; one where heads can be removed as they are."""
        return {shape[-1] for shape in self.shapes.values()}


class Tracer(TorchFunctionMode):
    """Sends a model's linear layers and embeddings through marks. First call: make them; second: use them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.projections: dict[nn.Parameter, Projection] = {}
        self.tables: dict[nn.Parameter, Table] = {}
        self.attentions: list[Attention] = []
        self.routers: dict[nn.Module, list[Projection]] = {}
        self._next = 0
        self._kept: list[Tensor] = []
        self._making = True
        self._of_output: dict[Any, Projection] = {}
        for module in model.modules():
            if hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
                module.forward = lambda *args, _module=module, **kwargs: self.experts(
                    _module, *args, **kwargs
                )

    def knows(self, parameter: nn.Parameter) -> bool:
        """Whether a mark stands for the parameter; the others are used as they are, channel by channel."""
        biases = (bias for mark in self.projections.values() for bias in mark.biases)
        return (
            parameter in self.projections or parameter in self.tables or any(parameter is b for b in biases)
        )

    def find(self, inputs: dict[str, Any]) -> None:
        """Run the model once to see what there is, and hang the marks into it, where hooks find them."""
        self.attentions.clear()
        with _attending(self), self:
            self.model(**inputs)
        self._making = False
        roles = [mark for attention in self.attentions for mark in attention.marks.values()]
        self.model.compress_marks = nn.ModuleList([*self.projections.values(), *self.tables.values(), *roles])

    def forward(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Run the model, return its logits and every tensor whose path would otherwise end in attention."""
        self._kept.clear()
        self._next = 0
        with _attending(self), self:
            logits = self.model(**inputs).logits
        return [logits, *self._kept]

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear and isinstance(args[1], nn.Parameter):
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return self.project(args[0], args[1], bias, in_dim=1, out_dim=0)
        if function is torch.addmm and isinstance(args[2], nn.Parameter):
            return self.project(args[1], args[2], args[0], in_dim=0, out_dim=1)
        if function is functional.embedding and isinstance(args[1], nn.Parameter):
            if self._making:
                self.tables.setdefault(args[1], Table(args[1], in_dim=0, out_dim=1))
            return self.tables[args[1]](args[0])
        return function(*args, **kwargs)

    def project(self, x: Tensor, weight: nn.Parameter, bias: Any, *, in_dim: int, out_dim: int) -> Tensor:
        """Multiply, as far as shapes are concerned."""
        if self._making:
            mark = self.projections.setdefault(weight, Projection(weight, in_dim, out_dim))
            if isinstance(bias, nn.Parameter) and not any(b is bias for b in mark.biases):
                mark.biases.append(bias)
        mark = self.projections[weight]
        result: Tensor = mark(x)
        self._of_output[result.grad_fn] = mark
        return result

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mark the three and return a new tensor of the output's shape ``[B, T, heads, head_dim]``."""
        tensors: dict[Role, Tensor] = {"query": query, "key": key, "value": value}
        if self._making:
            roles: tuple[Role, ...] = (*tensors, "output")
            shapes = {role: tuple(tensor.shape) for role, tensor in tensors.items()}
            self.attentions.append(Attention(module, shapes, {role: Mark(role) for role in roles}))
        attention = self.attentions[-1 if self._making else self._next]
        self._next += 1
        self._kept += [attention.marks[role](tensor) for role, tensor in tensors.items()]
        batch, heads, length, _ = query.shape
        output = query.new_empty((batch, length, heads, value.shape[-1])).requires_grad_()
        result: Tensor = attention.marks["output"](output)
        return result

    def experts(self, module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """One expert for all: in, the module's own activation, out."""
        in_dim, out_dim = (1, 2) if module.is_transposed else (2, 1)
        up = "gate_up_proj" if module.has_gate else "up_proj"

        def project(x: Tensor, name: str) -> Tensor:
            bias = getattr(module, f"{name}_bias", None)
            return self.project(x, getattr(module, name), bias, in_dim=in_dim, out_dim=out_dim)

        inner = project(hidden, up)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        self._kept.append(top_k_weights * 1)
        self.routers[module] = self._routers_of(top_k_weights, getattr(module, up).shape[0])
        return project(inner, "down_proj")

    def _routers_of(self, weights: Tensor, num_experts: int) -> list[Projection]:
        """The nearest projections to one output an expert before the weights of the chosen experts."""
        found, pending, seen = [], [weights.grad_fn], set()
        while pending:
            function = pending.pop()
            if function is None or function in seen:
                continue
            seen.add(function)
            mark = self._of_output.get(function)
            if mark is None:
                pending += [before for before, _ in function.next_functions]
            elif mark.weight.shape[mark.out_dim] == num_experts:
                found.append(mark)
        return found


_current: list[Tracer] = []
"""The tracer the registered attention reports to; transformers calls it by name, not by object."""


@contextmanager
def _attending(tracer: Tracer) -> Iterator[None]:
    _current.append(tracer)
    try:
        yield
    finally:
        _current.pop()


def _stand_in(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _current[-1].attend(module, query, key, value), None


AttentionInterface.register(ATTENTION, _stand_in)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


@contextmanager
def without_rotary(model: Any) -> Iterator[None]:
    """Make the rotary functions of the model's own module return their tensors as they came."""
    module = sys.modules[type(model).__module__]
    found = {name: f for name, f in vars(module).items() if name.startswith("apply_rotary") and callable(f)}
    try:
        for name, function in found.items():
            setattr(module, name, _unrotated(function))
        yield
    finally:
        for name, function in found.items():
            setattr(module, name, function)


def _unrotated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tensors to rotate are the arguments before the table of angles."""
    names = list(inspect.signature(function).parameters)
    angles = next((i for i, name in enumerate(names) if name.startswith(("cos", "freqs", "sin", "pos"))), 1)

    def identity(*args: Any, **kwargs: Any) -> Any:
        tensors = [kwargs[name] if name in kwargs else args[i] for i, name in enumerate(names[:angles])]
        return tuple(tensors) if len(tensors) > 1 else tensors[0]

    return identity
