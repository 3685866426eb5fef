"""Narrow a model: remove the FFN neurons, KV groups with their query heads, and hidden channels of least use.

Neurons, groups, heads and experts are chosen in every layer for itself, hidden channels once for the whole model,
because the residual stream runs through it. Every layer keeps the same number, so the result is an ordinary
checkpoint of the same family. What stays is refitted to make up for what went.
"""

from collections.abc import Mapping
from typing import cast

from pydantic import Field

from compress.errors import InputError
from compress.models.layout import Layout, WidthAxis, layout
from compress.plugins import Context, Prepared
from compress.prune.interface import Unit, importance
from compress.prune.planning import (
    REHEARSED_ALIGNMENT,
    float_bytes,
    pruned_spec,
    pruning_work,
)
from compress.prune.settings import CompensationSettings, ScoreSettings, few_steps
from compress.prune.shapes import default_axes
from compress.prune.target import Size, Target, explicit_shape, shape_for
from compress.prune.timings import check_can_be_timed, milliseconds_along, wanted_timings, with_latency
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 4
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Config(CompensationSettings):
    """How to narrow a model."""

    target: Target
    """How small: ``{params: 50%}`` or ``{hidden_size: 3072, intermediate_size: 9216}``."""
    axes: tuple[WidthAxis, ...] | None = Field(default=None, min_length=1)
    """What may shrink when `target` gives a budget: ``ffn``, ``kv_groups``, ``hidden``, ``heads`` (query heads inside
    their group), ``experts``, ``expert_ffn``. Default: all the model has but ``heads``."""
    align: dict[WidthAxis, Size] = Field(default_factory=dict)
    """What chosen sizes are multiples of. Default: 256 for hidden and ffn (less below 2048), 2 for kv_groups of 8
    or more."""
    importance: str = "compensated"
    """How units are scored: a file of ``compress/prune/importance``, such as ``activation`` or ``output_energy``."""


def prepare(config: Config) -> dict[str, Prepared]:
    """Ask for the units' scores, which every target on the same parent shares, and for timings where they decide."""
    common = {name: getattr(config, name) for name in ("calibration", "tokens", "memory")}
    scores = Prepared("prune.scores", ScoreSettings(importance=config.importance, **common))
    return {"scores": scores, **wanted_timings(config.target)}


def shape_is_measured(config: Config) -> bool:
    """A latency is measured when the step runs: until then it counts as proportional to the bytes read a token."""
    return config.target.latency is not None


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the narrowed model. Raises `InputError` for an impossible target or an unsuitable importance."""
    before = layout(spec.config)
    importance(config.importance, before.width_axes)
    check_can_be_timed(before, config.target)
    return pruned_spec(spec, _decide(before, config, float_bytes(spec)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of refitting what stays."""
    return pruning_work(spec, predict(spec, config), config, inputs)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a relative target, sizes that the smallest groups divide, few tokens."""
    share = "90%" if config.axes and set(config.axes) <= {"kv_groups", "heads"} else "60%"
    return config.model_copy(
        update={
            "target": Target(params=share),
            "align": REHEARSED_ALIGNMENT,
            "tokens": 512,
            **few_steps(config),
        }
    )


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Keep the units that score highest, refit them, and write the checkpoint and ``pruning_map.json``."""
    from compress.prune.pruning import prune_to, read_scores

    assert parent.spec is not None
    before = layout(parent.spec.config)
    after = _decide(before, config, float_bytes(parent.spec), context)
    outcome = prune_to(parent, after, read_scores(context, "scores"), None, config, context)
    return with_latency(outcome, parent, before, after, context)


def _decide(before: Layout, config: Config, dtype_bytes: int, context: Context | None = None) -> Layout:
    if not config.target.is_explicit:
        axes = cast(tuple[Unit, ...], config.axes or default_axes(before))
        align = cast(Mapping[Unit, int], config.align)
        times = milliseconds_along(context, before, axes, align)
        return shape_for(config.target, before, axes, align, dtype_bytes=dtype_bytes, milliseconds=times)
    if config.target.layers is not None:
        raise InputError(
            "target layers: prune.width removes no layers; use prune.depth, or prune for both at once"
        )
    return explicit_shape(before, config.target.sizes)
