"""Prune along several axes at once, layers among them: to an exact shape, or to a budget by the rule of even shares.

`prune.search` finds the shape by measuring; this step decides it from the configuration alone.
"""

from collections.abc import Mapping

from pydantic import Field

from compress.models.layout import Layout, layout
from compress.plugins import Context, Prepared
from compress.prune.interface import Unit, importance
from compress.prune.layer_scores import layer_scores
from compress.prune.planning import (
    REHEARSED_ALIGNMENT,
    float_bytes,
    pruned_spec,
    pruning_work,
)
from compress.prune.settings import CompensationSettings, Cut, ScoreSettings, few_steps
from compress.prune.shapes import default_axes
from compress.prune.target import Size, Target, explicit_shape, shape_for
from compress.prune.timings import check_can_be_timed, milliseconds_along, wanted_timings, with_latency
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 3
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Config(CompensationSettings):
    """What to remove."""

    target: Target
    """How small: ``{params: 50%}`` or ``{layers: 24, hidden_size: 3072}``."""
    axes: tuple[Unit, ...] | None = Field(default=None, min_length=1)
    """What may shrink when `target` gives a budget: ``layers``, ``ffn``, ``kv_groups``, ``hidden``, ``heads``,
    ``experts``, ``expert_ffn``. Default: ``layers`` and all that ``prune.width`` narrows."""
    align: dict[Unit, Size] = Field(default_factory=dict)
    """What chosen sizes are multiples of; see ``prune.width``."""
    importance: str = "compensated"
    """How units within layers are scored: a file of ``compress/prune/importance``."""
    layer_importance: str = "iterative_loss"
    """How layers are scored."""


def prepare(config: Config) -> dict[str, Prepared]:
    """Ask for the scores of units and of layers, as far as either may shrink, and for timings where they decide."""
    common = {name: getattr(config, name) for name in ("calibration", "tokens", "memory")}
    asked = config.target.sizes or config.axes or ("layers", "ffn")
    wanted: dict[str, Prepared] = {}
    if any(axis != "layers" for axis in asked):
        settings = ScoreSettings(importance=config.importance, **common)
        wanted["scores"] = Prepared("prune.scores", settings)
    if "layers" in asked:
        cut = Cut(target=config.target, axes=config.axes, align=config.align)
        wanted["layer_scores"] = layer_scores(config.layer_importance, cut, config)
    return wanted | wanted_timings(config.target)


def shape_is_measured(config: Config) -> bool:
    """A latency is measured when the step runs: until then it counts as proportional to the bytes read a token."""
    return config.target.latency is not None


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the pruned model. Raises `InputError` for an impossible target or an unsuitable importance."""
    before = layout(spec.config)
    importance(config.importance, before.width_axes)
    importance(config.layer_importance, ["layers"])
    check_can_be_timed(before, config.target)
    return pruned_spec(spec, _decide(before, config, float_bytes(spec)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of refitting what stays."""
    return pruning_work(spec, predict(spec, config), config, inputs)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a relative target, sizes that the smallest groups divide, few tokens."""
    return config.model_copy(
        update={
            "target": Target(params="70%"),
            "align": REHEARSED_ALIGNMENT,
            "tokens": 512,
            **few_steps(config),
        }
    )


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Keep what scores highest, refit it, and write the checkpoint and ``pruning_map.json``."""
    from compress.prune.pruning import prune_to, read_scores

    assert parent.spec is not None
    before = layout(parent.spec.config)
    after = _decide(before, config, float_bytes(parent.spec), context)
    metric = importance(config.layer_importance, ["layers"])
    outcome = prune_to(parent, after, read_scores(context, "scores", "layer_scores"), metric, config, context)
    return with_latency(outcome, parent, before, after, context)


def _decide(before: Layout, config: Config, dtype_bytes: int, context: Context | None = None) -> Layout:
    if config.target.is_explicit:
        return explicit_shape(before, config.target.sizes)
    axes = config.axes or ("layers", *default_axes(before))
    times = milliseconds_along(context, before, axes, config.align)
    return shape_for(config.target, before, axes, config.align, dtype_bytes=dtype_bytes, milliseconds=times)
