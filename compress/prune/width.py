"""Narrow a model: remove the FFN neurons, KV groups with their query heads, and hidden channels of least use.

Neurons and groups are chosen in every layer for itself, hidden channels once for the whole model, because the
residual stream runs through it. Every layer keeps the same number, so the result is an ordinary checkpoint of
the same family.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from compress.models.layout import Layout, WidthAxis, layout
from compress.models.spec import read_spec
from compress.plugins import Context, DataRef, StepConfig
from compress.prune.interface import importance
from compress.prune.planning import calibrated_work, pruned_spec
from compress.prune.target import KEYS, Budget, explicit_shape, shape_for
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "hf"

AXES: tuple[WidthAxis, ...] = ("ffn", "kv_groups", "hidden")
Size = Annotated[int, Field(ge=1)]


class Target(StepConfig):
    """How small: a number of parameters, or exact sizes (what is not named stays)."""

    params: Budget | None = None
    """``50%`` of the parent's parameters, ``4.0B``, ``350M`` or a whole number. The shape is chosen for you."""
    hidden_size: Size | None = None
    """Width of the residual stream."""
    intermediate_size: Size | None = None
    """FFN neurons of every layer."""
    num_key_value_heads: Size | None = None
    """KV groups of every layer; query heads follow in the parent's ratio."""

    @property
    def sizes(self) -> dict[WidthAxis, int]:
        """The sizes asked for, by axis."""
        asked = {axis: getattr(self, key) for axis, key in KEYS.items()}
        return {axis: size for axis, size in asked.items() if size is not None}

    @model_validator(mode="after")
    def _either(self) -> "Target":
        if (self.params is None) == (not self.sizes):
            raise ValueError(f"give either `params`, or sizes: {', '.join(KEYS.values())}")
        return self


class Config(StepConfig):
    """How to narrow a model."""

    target: Target
    """How small: ``{params: 50%}`` or ``{hidden_size: 3072, intermediate_size: 9216}``."""
    axes: tuple[WidthAxis, ...] = Field(default=AXES, min_length=1)
    """What may shrink when `target` gives `params`: ``ffn``, ``kv_groups``, ``hidden``."""
    align: dict[WidthAxis, Size] = Field(default_factory=dict)
    """What chosen sizes are multiples of. Default: 256 for hidden and ffn (less below 2048), 2 for kv_groups of 8
    or more."""
    importance: str = "activation"
    """How units are scored: a file of ``compress/prune/importance``, such as ``activation`` or ``weight``."""
    calibration: DataRef = "calibration"
    """The data the scores are taken on. Only read forward; nothing is trained."""
    samples: int = Field(default=512, ge=1)
    """At most this many calibration sequences are read."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the narrowed model. Raises `InputError` for an impossible target or an unsuitable importance."""
    importance(config.importance, AXES)
    return pruned_spec(spec, _decide(layout(spec.config), config))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of one forward pass over the calibration data."""
    return calibrated_work(spec, predict(spec, config), config.samples)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a relative target, its own alignment, few samples."""
    share = "90%" if set(config.axes) == {"kv_groups"} else "60%"
    return config.model_copy(update={"target": Target(params=share), "align": {}, "samples": 4})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Score the units, keep the highest, and write the sliced checkpoint and ``pruning_map.json``."""
    from compress.prune.calibration import score_units
    from compress.prune.kept import Kept, top, write_map
    from compress.prune.slicing import write_pruned

    assert parent.spec is not None
    before = layout(parent.spec.config)
    after = _decide(before, config)
    counts = {axis: after.length(axis) for axis in AXES if after.length(axis) < before.length(axis)}
    scores = score_units(parent.path, before, importance(config.importance, AXES), config.samples, context)
    kept = Kept(range(before.num_layers), {axis: top(scores[axis], count) for axis, count in counts.items()})
    write_pruned(parent.path, context.folder, before, after, kept)
    write_map(context.folder, kept, scores, before.num_layers)
    return Outcome(spec=read_spec(context.folder), facts={KEYS[axis]: after.length(axis) for axis in AXES})


def _decide(before: Layout, config: Config) -> Layout:
    if config.target.params is None:
        return explicit_shape(before, config.target.sizes)
    return shape_for(config.target.params, before, config.axes, config.align)
