"""A graph traced at sizes that nothing else in a model has, and then made to read these sizes from its inputs.

Tracing with symbolic sizes takes four times as long, nearly all of it algebra about them. At fixed sizes a graph holds
them as integers: the batch, the tokens read, those in the cache, and both together, in shapes, slices and ranges. Their
prime factors are chosen so that no size of the model has one: an integer that has is made of them, and is computed from
the inputs' shapes instead. Where one may be made of them in another way, by adding, say, the graph is not understood.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
NEAR = 2
"""How far an integer may be from a sum of sizes and still be suspected to come from it: ends, and what follows them."""


class NotUnderstood(Exception):
    """An integer of the graph may depend on the sizes it was traced at, and it cannot be told how."""


class Sizes(NamedTuple):
    """What a graph is traced at."""

    batch: int
    new: int
    """Tokens read; twice a prime, so that the sum can be one."""
    past: int
    """Tokens in the cache."""

    @property
    def total(self) -> int:
        return self.past + self.new

    @property
    def primes(self) -> dict[int, str]:
        """The name of the size that has a prime factor."""
        return {self.batch: "batch", self.new // 2: "new", self.past: "past", self.total: "total"}


CHOICES = (
    Sizes(1009, 10_006, 100_057),
    Sizes(1013, 10_202, 100_109),
    Sizes(1019, 10_418, 100_313),
    Sizes(1021, 10_606, 100_333),
)
"""Far apart, so that no sum or difference is an everyday number."""


def sizes_for(config: Mapping[str, Any]) -> Sizes | None:
    """Return sizes none of whose prime factors is in an integer of the configuration, if there are any."""
    taken = set(_integers(config))
    for sizes in CHOICES:
        if not any(number % prime == 0 for number in taken if number for prime in sizes.primes):
            return sizes
    return None


def _integers(value: object) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _integers(each)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def free_sizes(model: ir.Model, sizes: Sizes) -> None:
    """Make the graph one for any sizes. Raises `NotUnderstood`, the graph half changed, where that is not sure.

    Its inputs are named as other runtimes expect (``input_ids``, ``attention_mask``, ``past_key_values.0.key``).
    """
    free = _Free(model.graph, sizes)
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Constant":
            free.constant(node)
        else:
            free.check(node)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype in INTEGERS and value.const_value.size < 100:
            free.check_numbers(value.const_value.numpy(), value.name)
    common.RemoveUnusedNodesPass()(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([free.dimension(size) for size in value.shape])


class _Free:
    """What is known of a graph's sizes while they are made free."""

    def __init__(self, graph: ir.Graph, sizes: Sizes) -> None:
        self._graph = graph
        self._sizes = sizes
        self._nodes: dict[str, ir.Value] = {}
        """The value of each size, and of each integer made of them, one-dimensional."""
        numbers = (*sizes, sizes.total)
        self._sums = {
            sum(sign * number for sign, number in zip(signs, numbers, strict=True))
            for signs in product((-1, 0, 1), repeat=len(numbers))
        } - {0}
        self._first = next(iter(graph))

    def constant(self, node: ir.Node) -> None:
        """Let what uses a constant that holds sizes use one computed from the inputs."""
        array = _value(node)
        if array is None:
            self.check(node)
            return
        flat = array.reshape(-1)
        if array.size > 100 or not any(self._factors(int(number)) for number in flat):
            self.check_numbers(flat[:100], node.name)
            return
        if array.dtype != np.int64 or array.ndim > 1 or node.graph is not self._graph:
            raise NotUnderstood(f"{node.name} holds sizes as {array.dtype} of shape {array.shape}")
        parts = [self._number(int(number)) for number in flat]
        whole = parts[0] if len(parts) == 1 else self._new("Concat", parts, {"axis": 0})
        if array.ndim == 0:
            whole = self._new("Squeeze", [whole])
        ir.convenience.replace_all_uses_with(node.outputs[0], whole)

    def check(self, node: ir.Node) -> None:
        """Raise `NotUnderstood` if an attribute of a node may be made of sizes."""
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
                numbers = attribute.value if isinstance(attribute.value, tuple | list) else [attribute.value]
                self.check_numbers(np.array(numbers, dtype=np.int64), node.name)

    def check_numbers(self, numbers: np.ndarray, name: str | None) -> None:
        """Raise `NotUnderstood` if a number may be made of sizes."""
        for number in map(float, numbers.reshape(-1)):
            if not number.is_integer() or abs(number) >= 2**53:
                continue
            near = any(int(number) + step in self._sums for step in range(-NEAR, NEAR + 1))
            if near or self._factors(int(number)):
                raise NotUnderstood(f"{name} holds {int(number)}, which may come of the sizes {self._sizes}")

    def dimension(self, size: int | ir.SymbolicDim) -> int | str | None:
        """Return a dimension of a value's shape: the name of a size, or nothing where it is made of several."""
        if not isinstance(size, int):
            return None if size.value is None else str(size.value)
        factors = self._factors(size)
        if not factors:
            return size
        return f"{factors[0]}_size" if size == self._size(factors[0]) else None

    def _size(self, name: str) -> int:
        return self._sizes.total if name == "total" else int(self._sizes._asdict()[name])

    def _factors(self, number: int) -> list[str]:
        """Return which sizes a number is a product of, beside what is not."""
        if number == 0 or abs(number) >= 2**62:
            return []
        found = []
        for prime, name in self._sizes.primes.items():
            while number % prime == 0:
                number //= prime
                found.append(name)
        return found

    def _number(self, number: int) -> ir.Value:
        """Return an integer made of sizes, of one dimension with one element."""
        factors, rest = self._factors(number), number
        for name in factors:
            if rest % self._size(name):
                raise NotUnderstood(f"{number} is no product of the sizes {self._sizes}")
            rest //= self._size(name)
        key = f"{rest}:{'*'.join(factors)}"
        if key not in self._nodes:
            values = [self._of_input(name) for name in factors]
            if rest != 1 or not values:
                values.append(self._new("Constant", [], {"value_ints": [rest]}))
            result = values[0]
            for value in values[1:]:
                result = self._new("Mul", [result, value])
            self._nodes[key] = result
        return self._nodes[key]

    def _of_input(self, name: str) -> ir.Value:
        if name not in self._nodes:
            inputs = {value.name: value for value in self._graph.inputs}
            source, axis = {
                "batch": ("input_ids", 0),
                "new": ("input_ids", 1),
                "past": ("past_key_values.0.key", 2),
                "total": ("attention_mask", 1),
            }[name]
            self._nodes[name] = self._new("Shape", [inputs[source]], {"start": axis, "end": axis + 1})
        return self._nodes[name]

    def _new(
        self, kind: str, inputs: list[ir.Value], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Return what a new node before all others gives: an integer, or several in one dimension."""
        node = ir.node(kind, inputs, attributes)
        self._graph.insert_before(self._first, node)
        output: ir.Value = node.outputs[0]
        output.dtype = ir.DataType.INT64
        return output


def _value(node: ir.Node) -> np.ndarray | None:
    """Return what a constant holds, if it is numbers."""
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if name in node.attributes:
            value = node.attributes[name].value
            return value.numpy() if name == "value" else np.asarray(value)
    return None
