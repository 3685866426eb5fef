"""All shapes a model can be cut to, and what each would cost, computed together.

A shape is a number of units along every axis that may shrink. Parameters, FLOPs and bytes are polynomials in these
numbers with the family's table as coefficients, so hundreds of thousands of shapes take well under a second.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from compress.models.family import OPTIONAL, Axis, WidthAxis, flat, option
from compress.models.layout import Layout
from compress.prune.interface import Unit

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

KEYS: dict[Unit, str] = {
    "layers": "layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "kv_groups": "num_key_value_heads",
    "heads": "num_attention_heads",
    "experts": "num_experts",
    "expert_ffn": "moe_intermediate_size",
}
"""What a target calls the sizes. ``num_attention_heads`` counts all query heads of a layer, not those of a group."""

LARGEST_ALIGNMENT = 256

DECISIVE: tuple[Unit, ...] = ("hidden", "kv_groups", "heads")
"""What a family's own refusal may depend on."""

AT_ONCE: tuple[Unit, ...] = ("hidden", "expert_ffn")
EXPERTS_MULTIPLE = 8
"""transformers multiplies all experts at once in a kernel whose rows must be multiples of 16 bytes."""

CACHE_BYTES = 2
"""Bytes of a number in the KV cache."""


class Shapes:
    """Every combination of sizes along some axes; `model` is the parent. Figures are arrays with a place a shape."""

    def __init__(self, model: Layout, sizes: Mapping[Unit, Sequence[int]]) -> None:
        import numpy as np

        self.model, self.axes = model, tuple(sizes)
        grid = np.meshgrid(*(np.asarray(sizes[axis], dtype=np.float64) for axis in self.axes), indexing="ij")
        self._at: dict[Unit, Numbers] = {
            axis: values.ravel() for axis, values in zip(self.axes, grid, strict=True)
        }
        self._keep(self._possible())

    def __len__(self) -> int:
        return len(next(iter(self._at.values())))

    def lengths(self, index: int) -> dict[Unit, int]:
        """Return the numbers of units of one shape."""
        return {axis: int(values[index]) for axis, values in self._at.items()}

    def layout(self, index: int) -> Layout:
        """Return one shape as a layout; which layers stay is not known here, so they are the first ones."""
        return shaped(self.model, self.lengths(index))

    def fractions(self) -> "Numbers":
        """Return the kept share along each axis, ``[num_axes, num_shapes]``."""
        import numpy as np

        shares: Numbers = np.stack([self._at[axis] / length(self.model, axis) for axis in self.axes])
        return shares

    def params(self) -> "Numbers":
        """Return the number of parameters."""
        return self._sum(lambda name, axes: 1.0)

    def weight_bytes(self, dtype_bytes: float) -> "Numbers":
        """Return the bytes of the weights."""
        weights: Numbers = self.params() * dtype_bytes
        return weights

    def memory(self, dtype_bytes: float, context: int) -> "Numbers":
        """Return the bytes of weights and of the KV cache of one sequence of `context` tokens."""
        cache = CACHE_BYTES * self._cached(context)
        return cast("Numbers", self.weight_bytes(dtype_bytes) + cache)

    def flops(self, context: int) -> "Numbers":
        """Return the floating-point operations of one token that attends to `context` tokens.

        Two for every weight a token is multiplied with (of experts: those it is routed to, on average), and
        attention's ``q·k`` and ``p·v``.
        """
        model = self.model
        tied = model.tied

        def uses(name: str, axes: Sequence[Any]) -> float:
            if len(axes) < 2 or "positions" in axes or "segments" in axes:
                return 0.0
            if name == model.embedding and not tied:
                return 0.0
            return 2.0

        weights = self._sum(uses)
        if model.num_experts:
            experts = self._sum(lambda name, axes: 2.0 if "{expert}" in name else 0.0)
            weights = weights - experts * (1 - model.experts_per_token / self._size("experts"))
        return cast("Numbers", weights + 4.0 * context * self._layers() * self._size("query"))

    def decode_bytes(self, dtype_bytes: float, context: int) -> "Numbers":
        """Return the bytes read to make one token: what decoding is bound by. An embedding row counts as nothing."""
        total: Numbers = self.flops(0) / 2 * dtype_bytes + CACHE_BYTES * self._cached(context)
        return total

    def reads(self, context: int) -> dict[str, "Numbers"]:
        """Return what is done for one token after `context`, by kind: numbers read, and layers passed.

        ``attention``, ``mlp`` (of experts: those a token is routed to) and ``outside`` the layers are weights, of which
        an embedding row counts as nothing; ``cache`` is keys and values.
        """
        layers, everything = self._layers(), self.flops(0) / 2

        def attends(name: str, axes: Sequence[Any]) -> float:
            inside = {axis for dim in axes for axis in flat(dim)}
            return float(len(axes) == 2 and bool(inside & {"query", "key_value", "heads_qkv"}))

        def is_outside(name: str, axes: Sequence[Any]) -> float:
            counts = "{layer}" not in name and len(axes) == 2 and "positions" not in axes
            return float(counts and (name != self.model.embedding or self.model.tied))

        attention, outside = self._sum(attends), self._sum(is_outside)
        return {
            "layers": layers,
            "attention": attention,
            "mlp": everything - attention - outside,
            "outside": outside,
            "cache": self._cached(context),
        }

    def _cached(self, context: int) -> "Numbers":
        """Return how many keys and values are kept of one sequence; an encoder keeps none."""
        tokens = 0.0 if option(self.model.family, "ENCODER") else float(context)
        return cast("Numbers", 2 * tokens * self._layers() * self._size("key_value"))

    def _sum(self, factor: Any) -> "Numbers":
        settings = {**self.model.family.DEFAULTS, **self.model.config}
        total: Any = 0.0
        for name, row in self.model.family.TENSORS.items():
            if row.exists(settings) and (each := factor(name, row.axes)):
                count: Any = each * (self._layers() if "{layer}" in name else 1.0)
                if "{expert}" in name:
                    count = count * self._size("experts")
                for dim in row.axes:
                    count = count * sum(self._size(axis) for axis in flat(dim))
                total = total + count
        return cast("Numbers", total + 0.0 * self._layers())

    def _size(self, axis: Axis) -> "Numbers":
        groups, heads = self._number("kv_groups"), self._number("heads")
        if axis == "key_value":
            return cast("Numbers", groups * self.model.head_dim)
        if axis in ("query", "heads_qkv"):
            return cast("Numbers", groups * heads * self.model.head_dim * (3 if axis == "heads_qkv" else 1))
        if axis in self._at or axis in ("hidden", "ffn", "experts", "expert_ffn"):
            return self._number(cast(Unit, axis))
        return cast("Numbers", float(self.model.size(axis)) + 0.0 * self._layers())

    def _number(self, axis: Unit) -> "Numbers":
        import numpy as np

        return self._at[axis] if axis in self._at else np.full(len(self), float(length(self.model, axis)))

    def _layers(self) -> "Numbers":
        return self._number("layers")

    def _possible(self) -> "Numbers":
        """Whether transformers accepts the sizes."""
        model = self.model
        heads = self._number("kv_groups") * self._number("heads")
        good = self._number("experts") >= model.experts_per_token
        if model.heads_fill_hidden:
            good &= self._number("hidden") == heads * model.head_dim
        if option(model.family, "HEADS_DIVIDE_HIDDEN"):
            good &= self._number("hidden") % heads == 0
        if model.num_experts:
            for axis in AT_ONCE:
                sizes = self._number(axis)
                good &= (sizes % EXPERTS_MULTIPLE == 0) | (sizes == length(model, axis))
        if option(model.family, "refusal") is not OPTIONAL["refusal"]:
            good &= self._accepted(good)
        return good

    def _accepted(self, among: "Numbers") -> "Numbers":
        """Whether the family itself accepts the hidden size and the heads."""
        import numpy as np

        sizes = [self._number(axis) for axis in DECISIVE]
        rows, place = np.unique(np.stack(sizes, 1)[among], axis=0, return_inverse=True)
        lengths = [dict(zip(DECISIVE, map(int, row), strict=True)) for row in rows]
        accepted = np.array([shaped(self.model, each).refusal is None for each in lengths], dtype=bool)
        good: Numbers = among.copy()
        good[among] = accepted[place.ravel()]
        return good

    def _keep(self, chosen: "Numbers") -> None:
        self._at = {axis: values[chosen] for axis, values in self._at.items()}


def length(model: Layout, axis: Unit) -> int:
    """Return how many units a model has along an axis."""
    return model.num_layers if axis == "layers" else model.length(axis)


def shaped(model: Layout, lengths: Mapping[Unit, int]) -> Layout:
    """Return the layout with these numbers of units; of layers, the first ones."""
    narrow = model.to_lengths({axis: n for axis, n in lengths.items() if axis != "layers"})
    layers = lengths.get("layers", model.num_layers)
    return narrow if layers == model.num_layers else narrow.with_layers(range(layers))


def default_axes(model: Layout) -> tuple[WidthAxis, ...]:
    """Return what shrinks when the user does not say: all but the number of query heads in a group."""
    return tuple(axis for axis in model.width_axes if axis != "heads")


def sizes_along(model: Layout, axis: Unit, align: int | None) -> list[int]:
    """Return the sizes a shape may have along an axis: multiples of the alignment, and the parent's own."""
    whole = length(model, axis)
    step = align or default_alignment(axis, whole, model)
    return sorted({*range(step, whole, step), whole})


def default_alignment(axis: Unit, length: int, model: Layout | None = None) -> int:
    """Return what sizes are multiples of unless the user says.

    Hidden, FFN and expert sizes: the largest power of two up to 256 that is at most an eighth of the parent's size,
    so kernels stay fast on large models and small ones still have a choice; where there are experts at least 8; a
    hidden size that is made of heads goes in whole heads. KV groups: 2 where there are 8 or more, so that the heads
    still divide over two devices.
    """
    if axis == "kv_groups":
        return 2 if length >= 8 and length % 2 == 0 else 1
    if axis in ("layers", "heads"):
        return 1
    if axis == "experts":
        return max(1, length // 16)
    if axis == "hidden" and model is not None and model.heads_fill_hidden:
        return model.head_dim * default_alignment("kv_groups", model.num_kv_heads)
    power = 1 << max(0, (length // 8).bit_length() - 1)
    has_experts = axis == "expert_ffn" or (axis == "hidden" and model is not None and model.num_experts > 0)
    return min(LARGEST_ALIGNMENT, max(power, EXPERTS_MULTIPLE) if has_experts else power)
