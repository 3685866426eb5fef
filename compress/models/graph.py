"""Which axis every dimension of a model's parameters lies along, found by tracing the model itself.

This is a family's table (`family.Family.TENSORS`) written by the dependency graph instead of by hand: it checks the
families that are there (`check_against`), and `derived` makes one for an architecture that has none.

What is removed with a channel of the embedding is ``hidden``, with a channel of attention's query or output
``query``, of its key or value ``key_value``, with an input of a layer's inner projection ``ffn``.
"""

import time
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from compress.errors import InputError, StepFailed
from compress.models.axes import Axes, read_axes
from compress.models.checkpoint import auto_class
from compress.models.dependencies import trace
from compress.models.family import Config
from compress.models.layout import Layout
from compress.models.tracing import ATTENTION

TRACED_LAYERS = 2
"""One shows the pattern, the second that layers are not removed together."""

UNPRUNED = ("vocab", "positions", "segments", "head_dim")
"""Axes that no group of the graph is about: they are told by their size and place."""


def trace_axes(config: Config, time_limit_s: float = 60) -> dict[str, Axes]:
    """Return the axes of every stored tensor, ``{layer}`` and ``{expert}`` standing for any number.

    Raises `InputError` for an architecture that cannot be traced, `StepFailed` when the time is over.
    """
    model, name = meta_model(shortened(config)), config["model_type"]
    try:
        model.set_attn_implementation(ATTENTION)
        graph = trace(model, time.monotonic() + time_limit_s)
        if graph.tracer.attentions:
            return read_axes(graph, model)
    except StepFailed:
        raise
    except Exception as error:  # whatever an unknown model's forward raises on tensors without values
        raise InputError(
            f"models of architecture '{name}' cannot be traced without weights: {error}"
        ) from error
    raise InputError(
        f"models of architecture '{name}' compute attention by themselves, not through transformers' "
        "attention interface (or have none); what belongs to a head cannot be seen"
    )


def check_against(layout: Layout, time_limit_s: float = 60) -> None:
    """Compare a family's table with the traced one; raises `StepFailed` for the first disagreement."""
    traced = trace_axes(layout.config, time_limit_s)
    settings = {**layout.family.DEFAULTS, **layout.config}
    table = {name: row.axes for name, row in layout.family.TENSORS.items() if row.exists(settings)}
    family = f"the family file of '{layout.config['model_type']}'"
    if missing := [*(traced.keys() - table.keys()), *(table.keys() - traced.keys())]:
        name = min(missing)
        has, lacks = ("the model", family) if name in traced else (family, "the model")
        raise StepFailed(f"{name}: {has} has it, {lacks} has not")
    for name, axes in table.items():
        for dim, (said, seen) in enumerate(zip(axes, traced[name], strict=True)):
            if said != seen and not (seen is None and said in UNPRUNED):
                raise StepFailed(
                    f"{name}, dimension {dim}: {family} says {said!r}, the dependency graph says {seen!r}"
                )


def parsed(config: Config) -> Any:
    """Return a configuration as transformers reads it. Raises `InputError` for one it refuses or does not know."""
    settings = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        return AutoConfig.for_model(**settings)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(
            f"transformers refuses this {config.get('model_type')} configuration: {error}"
        ) from error


def meta_model(config: Config) -> Any:
    """Return the language model of a configuration, without weights. Raises `InputError` where there is none."""
    settings = parsed(config)
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(settings, attn_implementation="eager")
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        name = config["model_type"]
        raise InputError(
            f"transformers makes no language model of this {name} configuration: {error}"
        ) from error


def shortened(config: Config, layers: int = TRACED_LAYERS) -> Config:
    """Return the configuration of the same model with fewer layers, lists with an entry a layer cut to fit."""
    settings = parsed(config)
    key = settings.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    total = getattr(settings, key, None)
    if not isinstance(total, int) or total <= layers:
        return config
    everything = {**settings.to_dict(), **config}
    cut = {k: v[:layers] for k, v in everything.items() if isinstance(v, list) and len(v) == total}
    return {**config, **cut, key: layers}
