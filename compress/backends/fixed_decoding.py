"""Decoding from buffers that never move, in steps of which every one launches the same kernels on the same addresses.

That is what a CUDA graph can repeat. Plain transformers cannot: its dynamic cache grows, and the sliding layers of its
static one count in Python, which a graph would repeat as it was. Here the cache is a ring of fixed size in every layer,
and all that changes between steps (the token, its position, its column, what is padding) is read from tensors on the
device.

Shapes: B sequences, T columns of the prompt, S columns in all, W columns that a layer holds, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

MASKS = ("sdpa", "eager")
"""Ways of computing attention whose masks are known here."""

ALIGNED = 8
"""Columns are a multiple of this: attention kernels copy masks of other widths."""


class CannotRepeat(Exception):
    """A decoding step does what a graph cannot repeat."""


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Do the step again, on the tensors it was recorded with."""


Record = Callable[[Callable[[], None]], Graph]
"""Records a step. Raises `CannotRepeat`."""


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types there
    """Keys and values of the last W columns, each in the slot of its column modulo W."""

    is_sliding = False

    def __init__(self, like: CacheLayerMixin, num_slots: int, slot_1: Tensor) -> None:
        super().__init__()
        assert like.keys is not None and like.values is not None
        self.keys, self.values = (_slots(held, num_slots) for held in (like.keys, like.values))
        self.num_slots = num_slots
        self.is_initialized = True
        self._slot_1 = slot_1

    def fill(self, layer: CacheLayerMixin, num_columns: int) -> None:
        """Take over what a dynamic layer holds after so many columns: its last ones."""
        assert layer.keys is not None and layer.values is not None
        held = min(layer.keys.shape[2], self.num_slots)
        slots = torch.arange(num_columns - held, num_columns, device=self.keys.device) % self.num_slots
        self.keys.index_copy_(2, slots, layer.keys[:, :, -held:])
        self.values.index_copy_(2, slots, layer.values[:, :, -held:])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self._slot_1, key_states)
        self.values.index_copy_(2, self._slot_1, value_states)
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("it is made with its buffers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise CannotRepeat("the model makes its attention mask itself")

    def get_seq_length(self) -> int:
        raise CannotRepeat("the model asks how many tokens the cache holds")

    def get_max_length(self) -> int:
        return self.num_slots


class FixedDecoder:
    """Greedy decoding of a batch of one size, up to a number of columns."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, prefilled: Cache, num_columns: int, record: Record) -> None:
        """Record a step for batches like the prefilled one. Raises `CannotRepeat` for what cannot be recorded."""
        assert prefilled.layers
        self._model = model
        self._attention = _attention(model)
        self.num_columns = -(-num_columns // ALIGNED) * ALIGNED
        sizes = [_num_slots(layer, self.num_columns) for layer in prefilled.layers]
        first = prefilled.layers[0].keys
        batch, device = first.shape[0], first.device
        self._ids_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._positions_B1 = torch.zeros_like(self._ids_B1)
        self._column_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._is_real_BS = torch.zeros(batch, self.num_columns, dtype=torch.bool, device=device)
        self._slots = {size: torch.zeros_like(self._column_1) for size in sizes}
        self._layers = [
            FixedLayer(layer, size, self._slots[size])
            for layer, size in zip(prefilled.layers, sizes, strict=True)
        ]
        self._cache = Cache(layers=list(self._layers))
        self._kinds = _kinds(model, sizes)
        self._left = self.num_columns
        self._graph = record(self._step)

    @torch.inference_mode()
    def fill(self, prefilled: Cache, mask_BT: Tensor, next_B1: Tensor) -> None:
        """Take over a prompt that was read and the token that follows it."""
        num_columns = mask_BT.shape[1]
        for own, layer in zip(self._layers, prefilled.layers, strict=True):
            own.fill(layer, num_columns)
        self._ids_B1.copy_(next_B1)
        self._positions_B1.copy_(mask_BT.sum(1, keepdim=True))
        self._column_1.fill_(num_columns)
        self._is_real_BS.zero_()
        self._is_real_BS[:, :num_columns] = mask_BT.bool()
        self._left = self.num_columns - num_columns

    def next(self) -> Tensor:
        """Read the token there is and return the one that follows it ``[B, 1]``: a buffer, overwritten by the next."""
        assert self._left > 0, "no column is left"
        self._left -= 1
        self._graph.replay()
        return self._ids_B1

    @torch.inference_mode()
    def _step(self) -> None:
        """Read the tokens in the buffers; leave those that follow, and all else as the next step needs it."""
        self._is_real_BS.index_fill_(1, self._column_1, True)
        for size, slot_1 in self._slots.items():
            slot_1.copy_(self._column_1 % size)
        masks = {size: self._mask(size) for size in self._slots}
        only = next(iter(masks.values())) if len(masks) == 1 else None
        logits_B1V: Tensor = self._model(
            input_ids=self._ids_B1,
            attention_mask=only if only is not None else {k: masks[size] for k, size in self._kinds.items()},
            position_ids=self._positions_B1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._ids_B1.copy_(logits_B1V[:, -1].float().argmax(-1, keepdim=True))
        self._positions_B1.add_(1)
        self._column_1.add_(1)

    def _mask(self, size: int) -> Tensor:
        """Return which of a layer's slots hold a real token ``[B, 1, 1, W]``, as the model's attention wants it."""
        slots_W = torch.arange(size, device=self._column_1.device)
        # The last column that belongs in each slot; before the first one none does.
        columns_W = self._column_1 - (self._column_1 - slots_W) % size
        is_real_BW = self._is_real_BS.index_select(1, columns_W.clamp(min=0)) & (columns_W >= 0)
        mask_B11W = is_real_BW[:, None, None]
        if self._attention == "sdpa":
            return mask_B11W
        dtype = self._model.dtype
        bias_B11W = torch.zeros(mask_B11W.shape, dtype=dtype, device=mask_B11W.device)
        return bias_B11W.masked_fill_(~mask_B11W, torch.finfo(dtype).min)


def _slots(held: Tensor, num_slots: int) -> Tensor:
    return held.new_zeros(*held.shape[:2], num_slots, held.shape[3])


def _num_slots(layer: CacheLayerMixin, num_columns: int) -> int:
    """Return how many columns a layer has to hold, the new one included."""
    if type(layer) is DynamicSlidingWindowLayer:
        return min(int(layer.sliding_window), num_columns)
    if type(layer) is DynamicLayer:
        return num_columns
    raise CannotRepeat(f"its cache has layers of type {type(layer).__name__}")


def _attention(model: PreTrainedModel) -> str:
    attention = str(model.config._attn_implementation)
    if attention not in MASKS:
        raise CannotRepeat(f"attention is computed by '{attention}'")
    return attention


def _kinds(model: PreTrainedModel, sizes: list[int]) -> dict[str, int]:
    """Return how many columns the layers of each kind hold, by the names under which the model takes their masks."""
    if len(set(sizes)) == 1:
        return {}
    kinds: dict[str, int] = {}
    for kind, size in zip(getattr(model.config, "layer_types", None) or [], sizes, strict=False):
        if kinds.setdefault(kind, size) != size:
            raise CannotRepeat(f"layers of the kind '{kind}' differ in how far they look back")
    if set(kinds.values()) != set(sizes):
        raise CannotRepeat("its layers differ in how far they look back and have no names")
    return kinds
