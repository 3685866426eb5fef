"""Shorten a model: remove the layers it can best do without. What stays is refitted to make up for them."""

from collections.abc import Mapping

from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.plugins import Context, Prepared
from compress.prune.interface import importance
from compress.prune.planning import REFITS, calibrated_work, float_bytes, pruned_spec
from compress.prune.settings import CompensationSettings, ScoreSettings
from compress.prune.shapes import KEYS
from compress.prune.target import Target, explicit_shape, shape_for
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 2
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
    """Ask for the layers' scores, which every target on the same parent shares."""
    common = {name: getattr(config, name) for name in ("calibration", "tokens", "memory")}
    return {"scores": Prepared("prune.scores", ScoreSettings(importance=config.importance, **common))}


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the shortened model. Raises `InputError` for an impossible target or an unsuitable importance.

    Which layers stay is not known yet; the prediction's `layer_types` are those of the first ones.
    """
    importance(config.importance, ["layers"])
    return pruned_spec(spec, _decide(layout(spec.config), config, float_bytes(spec)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of refitting what stays."""
    passes = REFITS if config.compensate else 0.0
    return calibrated_work(spec, predict(spec, config), config.tokens, passes, config.memory == "stream")


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a mild relative target and few tokens."""
    return config.model_copy(update={"target": Target(params="80%"), "tokens": 512})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Keep the layers that score highest, refit them, and write the checkpoint and ``pruning_map.json``."""
    from compress.prune.pruning import prune_to, read_scores

    assert parent.spec is not None
    after = _decide(layout(parent.spec.config), config, float_bytes(parent.spec))
    metric = importance(config.importance, ["layers"])
    return prune_to(parent, after, read_scores(context, "scores"), metric, config, context)


def _decide(before: Layout, config: Config, dtype_bytes: int) -> Layout:
    if not config.target.is_explicit:
        return shape_for(config.target, before, ("layers",), {}, dtype_bytes=dtype_bytes)
    if other := [KEYS[axis] for axis in config.target.sizes if axis != "layers"]:
        raise InputError(
            f"target {other[0]}: prune.depth removes whole layers only; use prune.width, or prune for both"
        )
    return explicit_shape(before, config.target.sizes)
