"""Smaller models of an architecture, to compare with what transformers makes and to try things out on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from compress.errors import InputError
from compress.models.family import WidthAxis, option
from compress.models.graph import TRACED_LAYERS, shortened
from compress.models.layout import Layout

SMALL_VOCAB = 259
"""As many tokens as the byte tokenizer of the other families' tiny models has."""

BOUND: tuple[WidthAxis, ...] = ("hidden", "kv_groups", "heads")
"""Axes that are narrowed together where the heads fill the hidden size."""


def narrowings(layout: Layout) -> Iterator[Layout]:
    """Yield narrower models: one axis at a time, with what it is bound to."""
    for axis in layout.width_axes:
        least = layout.experts_per_token if axis == "experts" else 1
        lengths: dict[WidthAxis, int] = {axis: max(least, layout.length(axis) // 2)}
        if axis == "hidden" and not option(layout.family, "HEADS_DIVIDE_HIDDEN"):
            lengths = {axis: layout.hidden - 2}
        narrower = (
            halved_heads(layout) if axis in BOUND and layout.heads_fill_hidden else layout.to_lengths(lengths)
        )
        if narrower.refusal is None:
            yield narrower


def halved_heads(layout: Layout) -> Layout:
    """Return the layout with half the KV groups, or of an only one half the heads, and the channels they fill."""
    axis: WidthAxis = "kv_groups" if layout.num_kv_heads > 1 else "heads"
    half = layout.to_lengths({axis: max(1, layout.length(axis) // 2)})
    return half.resized(hidden=half.num_heads * half.head_dim)


def tiny(layout: Layout) -> Layout:
    """Return the layout of the same architecture in a size that runs in no time; heads keep their dimension."""
    config = shortened(layout.config) | _special_tokens(layout)
    num_layers = min(layout.num_layers, TRACED_LAYERS)
    short = replace(layout, config=config, num_layers=num_layers)
    groups = min(layout.num_kv_heads, 2)
    heads = groups * layout.heads_per_group
    fills = layout.heads_fill_hidden
    lengths: dict[WidthAxis, int] = {
        "hidden": heads * layout.head_dim if fills else heads * 2 * max(1, 32 // heads),
        "ffn": 48,
        "kv_groups": groups,
        "experts": max(4, 2 * layout.experts_per_token),
        "expert_ffn": 24,
    }
    there = {
        axis: min(length, layout.length(axis))
        for axis, length in lengths.items()
        if axis in layout.width_axes
    }
    small = short.to_lengths(there).resized(vocab=min(layout.vocab, SMALL_VOCAB))
    if small.refusal is not None:
        raise InputError(small.refusal)
    return small


def _special_tokens(layout: Layout) -> dict[str, Any]:
    """Return the ids of special tokens that a small vocabulary has: those it has not become the first or are gone."""
    ids = {key: value for key, value in layout.family.DEFAULTS.items() if key.endswith("_token_id")}
    large = {key: value for key, value in ids.items() if not (type(value) is int and value < SMALL_VOCAB)}
    return {key: 0 if type(value) is int else None for key, value in large.items()}
