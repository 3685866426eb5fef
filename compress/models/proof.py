"""Proof that a table says the truth about a model: in another order, its units compute the same.

The model is made small and real. Its stored tensors are reordered along one axis as the table says, a layer's units
in the layer's own order, and the logits must not change: a dimension the table misses, or reads in another order
than the model does, changes them. Which units stay is then as free as their order.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from compress.errors import InputError
from compress.models.checkpoint import auto_class, quiet
from compress.models.family import Axis, Config, WidthAxis, flat
from compress.models.graph import meta_model, parsed
from compress.models.layout import Layout

EXACTLY = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float64}

TOLERANCE = 1e-4
"""Of the logits' spread: models compute norms, angles and softmax in single precision whatever their weights are."""


def check_shapes(layout: Layout) -> None:
    """Raise `InputError` unless transformers makes this configuration's model with the table's names and shapes."""
    expected, found = layout.shapes(), stored_shapes(layout.config)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(f"{name} would be {expected.get(name)}, transformers makes it {found.get(name)}")


def stored_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor transformers stores for a model of this configuration."""
    model = meta_model(config)
    stored = revert_weight_conversion(model, dict(model.named_parameters()))
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}


def small_model(layout: Layout) -> PreTrainedModel:
    """Return the model of a (small) layout with random weights, norms and biases among them, in double precision."""
    generator = torch.Generator().manual_seed(0)
    with quiet():
        model: PreTrainedModel = auto_class(layout.config).from_config(parsed(layout.config), **EXACTLY)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def check_order_is_free(layout: Layout, model: PreTrainedModel, axis: WidthAxis) -> None:
    """Raise `InputError` if the model computes something else after reordering the units of `axis`."""
    stored = revert_weight_conversion(model, {n: p.detach() for n, p in model.named_parameters()})
    generator = torch.Generator().manual_seed(1)
    other = reordered(layout, stored, axis, generator)
    with quiet():
        again = type(model).from_pretrained(None, config=model.config, state_dict=other, **EXACTLY).eval()
    ids = torch.randint(0, layout.vocab, (2, 12), generator=generator)
    with torch.no_grad():
        before, after = model(ids).logits, again(ids).logits
    error = float((after - before).abs().max() / before.std())
    if not error < TOLERANCE:
        raise InputError(
            f"its {axis} units depend on their order: reordered, they compute something else "
            f"(logits differ by {error:.1g} of their spread)"
        )


def reordered(
    layout: Layout, stored: Mapping[str, Tensor], axis: WidthAxis, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the stored tensors with the units of an axis in a random order, the same wherever they appear."""
    orders: dict[Any, Tensor] = {}

    def order(*place: Any) -> Tensor:
        if place not in orders:
            orders[place] = _other_order(layout.length(axis), generator)
        return orders[place]

    result = {}
    for name, axes in layout.tensors.items():
        layer, expert = layout.layer_of(name), layout.expert_of(name)
        if axis == "experts" and expert is not None:
            source = name.replace(f".experts.{expert}.", f".experts.{int(order(layer)[expert])}.")
            result[name] = stored[source].clone()
            continue
        place = () if axis == "hidden" else (layer, expert) if axis == "expert_ffn" else (layer,)
        tensor = stored[name]
        for dim, entry in enumerate(axes):
            moved, start = [], 0
            for part in flat(entry):
                moved.append(start + _places(layout, part, axis, order, place))
                start += layout.size(part)
            tensor = tensor.index_select(dim, torch.cat(moved))
        result[name] = tensor
    return result


def _other_order(length: int, generator: torch.Generator) -> Tensor:
    """Return a random order in which no unit is where it was."""
    order = torch.randperm(length, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def _places(layout: Layout, part: Axis, axis: WidthAxis, order: Any, place: tuple[Any, ...]) -> Tensor:
    """Return the places along one axis of a tensor in the new order of the units of `axis`."""
    places = torch.arange(layout.size(part))
    if part == axis:
        return places[order(*place)]
    if axis == "kv_groups" and part in ("query", "key_value", "heads_qkv"):
        return places.view(layout.num_kv_heads, -1)[order(*place)].flatten()
    if axis == "heads" and part == "query":
        grouped = places.view(layout.num_kv_heads, layout.heads_per_group, -1)
        return grouped[:, order(*place)].flatten()
    return places
