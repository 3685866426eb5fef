"""Shorten a model: remove the layers that turn the hidden state least (block influence)."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.models.spec import read_spec
from compress.plugins import Context, DataRef, StepConfig
from compress.prune.interface import importance
from compress.prune.planning import calibrated_work, pruned_spec
from compress.prune.target import Budget, layers_for
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Target(StepConfig):
    """How short: a number of layers, or of parameters."""

    layers: Annotated[int, Field(ge=1)] | None = None
    """Layers that stay."""
    params: Budget | None = None
    """``50%`` of the parent's parameters, ``4.0B``, ``350M`` or a whole number. The nearest number of layers is
    taken, at most 1 % above."""

    @model_validator(mode="after")
    def _either(self) -> "Target":
        if (self.params is None) == (self.layers is None):
            raise ValueError("give either `layers` or `params`")
        return self


class Config(StepConfig):
    """How to shorten a model."""

    target: Target
    """How short: ``{layers: 24}`` or ``{params: 75%}``."""
    importance: str = "block_influence"
    """How layers are scored: a file of ``compress/prune/importance`` that scores layers."""
    calibration: DataRef = "calibration"
    """The data the scores are taken on. Only read forward; nothing is trained."""
    samples: int = Field(default=512, ge=1)
    """At most this many calibration sequences are read."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the shortened model. Raises `InputError` for an impossible target or an unsuitable importance.

    Which layers stay is not known yet; the prediction's `layer_types` are those of the first ones.
    """
    importance(config.importance, ["layers"])
    before = layout(spec.config)
    return pruned_spec(spec, before.with_layers(range(_decide(before, config))))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of one forward pass over the calibration data."""
    return calibrated_work(spec, predict(spec, config), config.samples)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a mild relative target and few samples."""
    return config.model_copy(update={"target": Target(params="80%"), "samples": 4})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Score the layers, keep the highest, and write the checkpoint and ``pruning_map.json``."""
    from compress.prune.calibration import score_units
    from compress.prune.kept import Kept, top, write_map
    from compress.prune.slicing import write_pruned

    assert parent.spec is not None
    before = layout(parent.spec.config)
    metric = importance(config.importance, ["layers"])
    scores = score_units(parent.path, before, metric, config.samples, context)
    kept = top(scores["layers"], _decide(before, config))
    layers: list[int] = kept.tolist()
    write_pruned(parent.path, context.folder, before, before.with_layers(layers), Kept(layers, {}))
    write_map(context.folder, Kept(layers), scores, before.num_layers)
    removed = [layer for layer in range(before.num_layers) if layer not in layers]
    facts = {"layers": len(layers), "removed_layers": removed}
    return Outcome(spec=read_spec(context.folder), facts=facts)


def _decide(before: Layout, config: Config) -> int:
    target = config.target
    if target.params is not None:
        return layers_for(target.params, before)
    assert target.layers is not None
    if target.layers > before.num_layers:
        raise InputError(
            f"target layers: {target.layers} is more than the parent's {before.num_layers}; pruning only removes"
        )
    return target.layers
