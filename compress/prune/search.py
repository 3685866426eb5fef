"""Find the best shape by measuring: which axes of this model bear to shrink, and how much of each.

1. Every axis is shrunk by itself to a few sizes, and what that costs is measured (`prune.probe`).
2. The sum of these losses foretells every shape within the budget; the most promising are measured as a whole, one
   after the other, and each corrects what is foretold of the rest. The even shape of `prune` is always among them.
3. The best is pruned like by `prune` with that shape.

Nothing is trained unless `recover_tokens` says so. What is tried leaves numbers, no weights; only candidates that are
distilled are checkpoints in the store, until `compress gc`.
"""

from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from compress.machine import planned_machine
from compress.models.effort import flops_per_token, opening
from compress.models.layout import Layout, layout
from compress.plugins import Context, DataRef, ModelRef, Prepared
from compress.prune.interface import Unit, importance
from compress.prune.planning import (
    REHEARSED_ALIGNMENT,
    float_bytes,
    known_tokens,
    pruned_spec,
    pruning_work,
    trying,
)
from compress.prune.probe import TrialSettings, wanted_scores
from compress.prune.settings import few_steps
from compress.prune.shapes import default_axes
from compress.prune.target import Size, Target, shape_for
from compress.prune.timings import check_can_be_timed, wanted_timings, with_latency
from compress.quantities import Count
from compress.records import Artifact, ModelSpec, Outcome, Work
from compress.speed import start_seconds

VERSION = 2
ACCEPTS = ("hf",)
PRODUCES = "hf"

PROBES_AN_AXIS = 3


class Config(TrialSettings):
    """What to remove, and how hard to look for it."""

    target: Target
    """How small at most: ``{params: 50%}``, ``{memory: 6GB}``, ``{flops: 60%}`` or ``{latency: 20ms}``."""
    axes: tuple[Unit, ...] | None = Field(default=None, min_length=1)
    """What may shrink: ``layers``, ``ffn``, ``kv_groups``, ``hidden``, ``heads``, ``experts``, ``expert_ffn``. Default:
    ``layers`` and all that ``prune.width`` narrows."""
    align: dict[Unit, Size] = Field(default_factory=dict)
    """What sizes are multiples of; see ``prune.width``."""
    candidates: int = Field(default=6, ge=1)
    """How many shapes are measured as a whole, the even one among them."""
    slack: float = Field(default=0.0, ge=0, le=10)
    """How much quality to give for a lower cost: 0 takes the shape of least divergence within the budget, 0.1 the
    cheapest one whose divergence is at most a tenth above that."""
    recover_tokens: Count | None = None
    """Distil every candidate on so many tokens before it is judged: what is best before recovery need not be after.
    The result is pruned, not recovered. Takes `data`."""
    data: DataRef | None = None
    """The data candidates are distilled on with `recover_tokens`, such as ``recovery``."""
    teacher: ModelRef = "original"
    """Whom candidates learn from with `recover_tokens`, and are compared with then. Without it they are compared with
    the model that is pruned."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest learning rate of `recover_tokens`."""

    @field_validator("target")
    @classmethod
    def _is_budget(cls, target: Target) -> Target:
        if target.is_explicit:
            raise ValueError(
                "exact sizes leave nothing to search for; give a budget (params, memory, flops or latency), "
                "or use prune"
            )
        return target

    @model_validator(mode="after")
    def _recovers_on_data(self) -> "Config":
        if self.recover_tokens is not None and self.data is None:
            raise ValueError(
                "recover_tokens needs data to learn from: say `data: recovery`, or another name under data"
            )
        if self.recover_tokens is None and self.data is not None:
            raise ValueError(
                "data is what candidates are distilled on: say how long with `recover_tokens: 1M`"
            )
        return self


def prepare(config: Config) -> dict[str, Prepared]:
    """Ask for the scores of units and of layers, and for timings where the target is a latency."""
    scores = wanted_scores(config, config.axes or ("layers", "ffn"))
    return scores | wanted_timings(config.target)


def shape_is_measured(config: Config) -> bool:
    """The plan cannot know what a search will find: its sizes are those of the even shape."""
    return True


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the even shape. Raises `InputError` for an impossible target or an unsuitable importance."""
    before = layout(spec.config)
    check_can_be_timed(before, config.target)
    importance(config.importance, before.width_axes)
    importance(config.layer_importance, ["layers"])
    return pruned_spec(spec, even_shape(before, config, float_bytes(spec)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what probes and candidates take, and the final refit."""
    after, before = predict(spec, config), layout(spec.config)
    final = pruning_work(spec, after, config, inputs)
    axes = config.axes or ("layers", *default_axes(before))
    trials = PROBES_AN_AXIS * len(axes) + config.candidates
    # Each submission is a process of its own, which opens the model again.
    submitted = opening(spec).plus(Work(serial_seconds=start_seconds(Work(), planned_machine())))
    tried = (
        trying(spec, known_tokens(config.tokens_for(before), inputs))
        .times(trials)
        .plus(submitted.times(len(axes) + config.candidates))
    )
    work = final.plus(tried)
    if config.recover_tokens is None:
        return work
    teacher = inputs.get("teacher", spec)
    each = 3.0 * flops_per_token(after) + flops_per_token(teacher)
    recovery = Work(
        flops=config.recover_tokens * each, disk_bytes_read=after.weight_bytes + teacher.weight_bytes
    )
    recovery = recovery.plus(submitted.times(2)).times(config.candidates)
    kept = Work(disk_bytes=2 * config.candidates * final.disk_bytes)
    return work.plus(recovery).plus(kept)


def rehearse(config: Config) -> Config:
    """Return settings that fit a tiny model: a relative target, sizes for the smallest groups, few candidates."""
    kind, _ = config.target.budget
    target = Target.model_validate({kind: "70%", **({"context": 32} if kind == "latency" else {})})
    few = {"candidates": 2, "tokens": 512, "trial_tokens": 256, **few_steps(config)}
    recover = {"recover_tokens": None if config.recover_tokens is None else 1024}
    return config.model_copy(update={"target": target, "align": REHEARSED_ALIGNMENT, **few, **recover})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Search, then keep what scores highest, refit it, and write the checkpoint and ``pruning_map.json``.

    The fact ``search`` holds every probe and every candidate. Raises `InputError` where the target is out of reach.
    """
    from compress.prune.pruning import prune_to, read_scores
    from compress.prune.searching import Search

    assert parent.spec is not None
    before = layout(parent.spec.config)
    search = Search(parent, config, context)
    after = search.run()
    metric = importance(config.layer_importance, ["layers"])
    outcome = prune_to(parent, after, read_scores(context, "scores", "layer_scores"), metric, config, context)
    outcome = with_latency(outcome, parent, before, after, context)
    return outcome.model_copy(update={"facts": {**outcome.facts, "search": search.facts()}})


def even_shape(before: Layout, config: Config, dtype_bytes: int) -> Layout:
    """Return what `prune` would choose."""
    axes: tuple[Unit, ...] = config.axes or ("layers", *default_axes(before))
    return shape_for(config.target, before, axes, config.align, dtype_bytes=dtype_bytes)
