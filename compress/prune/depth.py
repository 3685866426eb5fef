"""Shorten a model: remove the layers it can best do without. What stays is refitted to make up for them."""

from collections.abc import Mapping

from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.plugins import Context, Prepared
from compress.prune.interface import importance
from compress.prune.layer_scores import layer_scores
from compress.prune.planning import float_bytes, pruned_spec, pruning_work
from compress.prune.settings import CompensationSettings, Cut, few_steps
from compress.prune.shapes import KEYS
from compress.prune.target import Target, explicit_shape, shape_for
from compress.prune.timings import check_can_be_timed, milliseconds_along, wanted_timings, with_latency
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 4
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Config(CompensationSettings):
    """How to shorten a model."""

    target: Target
    """How short: ``{layers: 24}`` or ``{params: 75%}``."""
    importance: str = "iterative_loss"
    """How layers are scored: a file of ``compress/prune/importance`` that scores layers, such as ``block_influence`` or
    ``contiguous_block``."""


def prepare(config: Config) -> dict[str, Prepared]:
    """Ask for the layers' scores, and for timings where they decide."""
    cut = Cut(target=config.target, axes=("layers",))
    return {"scores": layer_scores(config.importance, cut, config), **wanted_timings(config.target)}


def shape_is_measured(config: Config) -> bool:
    """A latency is measured when the step runs: until then it counts as proportional to the bytes read a token."""
    return config.target.latency is not None


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the shortened model. Raises `InputError` for an impossible target or an unsuitable importance.

    Which layers stay is not known yet; the prediction's `layer_types` are those of the first ones.
    """
    importance(config.importance, ["layers"])
    before = layout(spec.config)
    check_can_be_timed(before, config.target)
    return pruned_spec(spec, _decide(before, config, float_bytes(spec)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of refitting what stays."""
    return pruning_work(spec, predict(spec, config), config, inputs)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a mild relative target and few tokens."""
    return config.model_copy(update={"target": Target(params="80%"), "tokens": 512, **few_steps(config)})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Keep the layers that score highest, refit them, and write the checkpoint and ``pruning_map.json``."""
    from compress.prune.pruning import prune_to, read_scores

    assert parent.spec is not None
    before = layout(parent.spec.config)
    after = _decide(before, config, float_bytes(parent.spec), context)
    metric = importance(config.importance, ["layers"])
    outcome = prune_to(parent, after, read_scores(context, "scores"), metric, config, context)
    return with_latency(outcome, parent, before, after, context)


def _decide(before: Layout, config: Config, dtype_bytes: int, context: Context | None = None) -> Layout:
    if not config.target.is_explicit:
        times = milliseconds_along(context, before, ("layers",), {})
        return shape_for(config.target, before, ("layers",), {}, dtype_bytes=dtype_bytes, milliseconds=times)
    if other := [KEYS[axis] for axis in config.target.sizes if axis != "layers"]:
        raise InputError(
            f"target {other[0]}: prune.depth removes whole layers only; use prune.width, or prune for both"
        )
    return explicit_shape(before, config.target.sizes)
