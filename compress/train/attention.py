"""Attention inside the documents of packed rows, without a mask of every token beside every other.

transformers makes of positions that start anew a mask ``[B, 1, T, T]``. With a mask no kernel can leave anything out: a
row costs T² however short its documents are, keys and values are copied for all heads, and flash attention is out of
reach. Here attention is told where documents begin. On a GPU one kernel reads all of them, on a processor each is
computed alone, unless rows are short.

The boundaries take the place of the mask on their way through a model: a 4-dimensional mask reaches every layer as it
is, also when a layer's activations are computed a second time.

Shapes: B rows, T positions, H heads, K heads of keys and values, D size of a head, N documents.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from compress.data.batch import Documents

KERNEL: Callable[..., Any] | None = None
"""Flash attention over documents of any lengths; older releases of torch have none."""
with suppress(ImportError):
    from torch.nn.attention.varlen import varlen_attn

    KERNEL = varlen_attn

PACKED = "packed"
"""The name that transformers knows this attention by."""
LARGEST_HEAD = 256
"""Flash attention has kernels for heads up to this size, in steps of 8."""
ADDS_TO_SCORES = ("softcap", "position_bias", "s_aux", "cache")
"""What a model may want of attention besides, and no path here computes."""
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
SHORT_ROW = 128
"""Tokens. On a processor, rows up to this length are read whole, under a mask: a call for each of their documents costs
more than the squares it saves (1.0 to 1.5 times the time at 128 tokens, 0.7 to 1.0 at 256, half from 512)."""


def implementation(model: PreTrainedModel, wanted: str) -> str:
    """Return the name of the attention that a model computes where `wanted` is asked for.

    Scores that are bent (Gemma 2) only ``eager`` computes. ``packed`` becomes ``sdpa``, with masks, for models that do
    more to a row than to look back inside a window: chunks, both directions, states that run on.
    """
    if not model._supports_sdpa:
        return "eager"
    return "sdpa" if wanted == PACKED and not _only_looks_back(model) else wanted


def is_told_documents(model: PreTrainedModel) -> bool:
    """Whether the model's attention is the one here."""
    return bool(model.config._attn_implementation == PACKED)


def as_mask(documents: Documents) -> Tensor:
    """Return the boundaries as what a model passes on as its mask: int32 ``[N + 1, 1, 1, longest]``.

    A kernel must be told the longest document by a number, and to ask a GPU for one is to wait for it: it travels as a
    size, of an axis that takes no memory.
    """
    return documents.starts[:, None, None, None].expand(-1, 1, 1, documents.longest)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return attention's output ``[B, T, H, D]`` of a query ``[B, H, T, D]``, key and value ``[B, K, T, D]``.

    With another mask than `as_mask` gives it is transformers' ``sdpa``. `sliding_window`: how many tokens a token sees,
    itself among them. Raises `ValueError` for what is not computed here.
    """
    states = query, key, value
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return _sdpa(module, states, attention_mask, dropout, scaling, **rest)
    if asked := [name for name in ADDS_TO_SCORES if rest.get(name) is not None]:
        raise ValueError(f"attention inside documents does not compute {', '.join(asked)}")
    starts, longest = attention_mask[:, 0, 0, 0], attention_mask.shape[-1]
    window = None if sliding_window is None or sliding_window >= longest else sliding_window
    if window is None and (len(starts) - 1, longest) == (query.shape[0], query.shape[2]):
        return _sdpa(module, states, None, dropout, scaling)
    if _has_kernel(query, value, dropout):
        return _in_one_kernel(states, starts, longest, window, scaling), None
    if query.device.type == "cpu" and query.shape[2] > SHORT_ROW:
        return _each_alone(states, starts, window, dropout, scaling), None
    return _sdpa(module, states, _mask(starts, query, window), dropout, scaling)


def _sdpa(
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **rest: Any,
) -> tuple[Tensor, None]:
    output: Tensor = sdpa_attention_forward(module, *states, mask, dropout=dropout, scaling=scaling, **rest)[
        0
    ]
    return output, None


def _only_looks_back(model: PreTrainedModel) -> bool:
    """Whether all that a token sees is said by where its document begins and by its layer's window.

    Flash attention is told no more than that either, so a model that supports it says the rest to its attention itself.
    """
    config = model.config
    return (
        model._supports_flash_attn
        and model._can_set_attn_implementation()
        and not getattr(model, "_is_stateful", False)
        and getattr(config, "is_causal", True)
        and not getattr(config, "use_bidirectional_attention", False)
        and set(getattr(config, "layer_types", None) or ()) <= KNOWN_LAYERS
    )


def _has_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    size = query.shape[-1]
    return (
        query.is_cuda
        and dropout == 0
        and _product_dtype(query) in (torch.bfloat16, torch.float16)
        and size == value.shape[-1]
        and size % 8 == 0
        and size <= LARGEST_HEAD
        and _has_flash(query.device)
    )


@lru_cache
def _has_flash(device: torch.device) -> bool:
    """Whether the kernel runs there: it is written for Ampere and later. Older ones take no windows."""
    return (
        KERNEL is not None
        and {"window_size", "enable_gqa"} <= inspect.signature(KERNEL).parameters.keys()
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _product_dtype(states: Tensor) -> torch.dtype:
    """Return what autocast makes of the inputs of attention: of an operation it does not know it changes none."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _in_one_kernel(
    states: tuple[Tensor, Tensor, Tensor],
    starts: Tensor,
    longest: int,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Return the output of flash attention over all documents at once.

    Its backward pass adds to queries' gradients in any order, but in one order where only deterministic algorithms are
    allowed (`torch.use_deterministic_algorithms`, not `warn_only`); its forward pass has one order always.
    """
    query, key, value = (_end_to_end(state).to(_product_dtype(state)) for state in states)
    assert KERNEL is not None
    output: Tensor = KERNEL(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return _rows(output, states[0])


def _each_alone(
    states: tuple[Tensor, Tensor, Tensor],
    starts: Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Return the outputs of all documents, one after the other."""
    lengths = starts.diff().tolist()
    # To split is cheap in both directions: a slice's gradient would be as long as all documents.
    documents = zip(*(torch.split(_end_to_end(state), lengths) for state in states), strict=True)
    outputs = []
    for document in documents:
        query, key, value = (state.transpose(0, 1)[None] for state in document)
        banded = window is not None and window < query.shape[2]
        output = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_band(query.shape[2], window) if banded else None,
            dropout_p=dropout,
            is_causal=not banded,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output[0].transpose(0, 1))
    return _rows(torch.cat(outputs), states[0])


def _band(length: int, window: int | None) -> Tensor:
    """Return which tokens of a document each sees, bool ``[length, length]``."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    return seen if window is None else seen.triu(1 - window)


def _mask(starts: Tensor, query: Tensor, window: int | None) -> Tensor:
    """Return which tokens of its row each sees, bool ``[B, 1, T, T]``, without looking at what is on the GPU."""
    rows, length = query.shape[0], query.shape[2]
    places = torch.arange(rows * length, device=starts.device, dtype=starts.dtype)
    document_BT = torch.bucketize(places, starts[1:], right=True).view(rows, length)
    back = places[:length, None] - places[None, :length]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return ((document_BT[:, :, None] == document_BT[:, None]) & seen)[:, None]


def _end_to_end(states: Tensor) -> Tensor:
    """Return states ``[B, heads, T, D]`` as ``[B · T, heads, D]``; models keep them in that order, so nothing moves."""
    return states.transpose(1, 2).flatten(0, 1)


def _rows(output: Tensor, query: Tensor) -> Tensor:
    return output.view(query.shape[0], query.shape[2], *output.shape[1:])


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
"""For whoever runs such a model with padding or a cache."""
