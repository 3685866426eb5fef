"""How long one output token takes on this machine, for any shape a model can be cut to.

A few shapes around the parent are timed (`compress.prune.decoding`). The time of a token is a sum over what is done
for it,

    ms = token + b · layers + c₁ · attention + c₂ · mlp + c₃ · outside + c₄ · cache

in weights and cache entries read (`Shapes.reads`); the coefficients are fitted to the relative errors and never
negative. The result belongs to the machine: elsewhere it is measured again. A step with a latency target prepares it.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress.environment import hardware_fingerprint
from compress.errors import InputError
from compress.models.effort import opening, writing
from compress.models.layout import Layout
from compress.models.task import writes
from compress.plugins import Context, Prepared, StepConfig
from compress.prune.interface import Unit
from compress.prune.shapes import Shapes
from compress.prune.target import Target, possible_shapes
from compress.quantities import Count
from compress.records import Artifact, JsonValue, ModelSpec, Outcome, Work

if TYPE_CHECKING:
    from compress.prune.shapes import Numbers

VERSION = 2
ACCEPTS = ("hf",)
PRODUCES = "timings"
INTERNAL = True

TIMED_SHAPES, TIMED_TOKENS = 16, 50
"""About how many, and the tokens each writes over all rounds."""


class Config(StepConfig):
    """What is timed."""

    context: Count = 1024
    """Tokens before the one that is timed."""
    hardware: str = Field(default_factory=hardware_fingerprint)
    """The machine: a timing made elsewhere is another result."""


def wanted_timings(target: Target) -> dict[str, Prepared]:
    """Return what a step with this target has prepared: timings for a latency, for other budgets nothing."""
    if target.latency is None:
        return {}
    return {"timings": Prepared("prune.timings", Config(context=target.context))}


def check_can_be_timed(model: Layout, target: Target) -> None:
    """Raise `InputError` when the target is a latency and the model writes no tokens, or not after so many."""
    if target.latency is None:
        return
    if not writes(model.config):
        raise InputError(
            f"target latency: {model.config['model_type']} models write no tokens one after another. "
            "Allowed for them: params, memory, flops"
        )
    longest = model.config.get("max_position_embeddings")
    if longest and target.context >= longest:
        raise InputError(
            f"target context: the model reads {longest} tokens, so none can follow {target.context}; "
            "give a smaller context beside latency"
        )


def milliseconds(context: Context, shapes: Shapes) -> "Numbers | None":
    """Return the time of a token for every shape, and last for the parent; ``None`` when none was prepared."""
    import numpy as np

    if "timings" not in context.inputs:
        return None
    facts = context.inputs["timings"].facts
    parent = Shapes(shapes.model, {"layers": [shapes.model.num_layers]})
    times: Numbers = np.concatenate([
        token_times(facts["coefficients"], these.reads(int(facts["context"]))) for these in (shapes, parent)
    ])  # fmt: skip
    return times


def milliseconds_along(
    context: Context | None, model: Layout, axes: Iterable[Unit], align: Mapping[Unit, int]
) -> "Numbers | None":
    """Return `milliseconds` for the shapes that `shape_for` considers; ``None`` while planning."""
    if context is None:
        return None
    return (
        milliseconds(context, possible_shapes(model, tuple(axes), align))
        if "timings" in context.inputs
        else None
    )


def with_latency(
    outcome: Outcome, parent: Artifact, before: Layout, after: Layout, context: Context
) -> Outcome:
    """Return the outcome with a fact ``latency_ms``: what a token was predicted to take, and what it takes.

    Without a latency target it is returned as it is.
    """
    if "timings" not in context.inputs:
        return outcome
    from compress.prune.decoding import time_models

    facts = context.inputs["timings"].facts
    tokens = int(facts["context"])
    assert parent.spec is not None
    measured, whole = time_models(parent.spec, [after, before], tokens, context)
    predicted, predicted_whole = (
        float(token_times(facts["coefficients"], whole_reads(model, tokens))) for model in (after, before)
    )
    latency: dict[str, JsonValue] = {
        "context": tokens,
        "predicted": predicted,
        "measured": measured,
        "parent_predicted": predicted_whole,
        "parent_measured": whole,
    }
    return outcome.model_copy(update={"facts": {**outcome.facts, "latency_ms": latency}})


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what timing a few shapes takes, each no larger than the parent."""
    return opening(spec).plus(writing(spec, 1, config.context, TIMED_TOKENS)).times(TIMED_SHAPES)


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Return, as facts, the coefficients, and every timed shape with what the fit says of it."""
    from compress.prune.decoding import fitted, shapes_to_time, time_models

    assert parent.spec is not None
    models = shapes_to_time(parent.spec)
    times = time_models(parent.spec, models, config.context, context)
    reads = [whole_reads(model, config.context) for model in models]
    coefficients = fitted(reads, times)
    timed = [
        {**_sizes(model), "milliseconds": ms, "fitted": float(token_times(coefficients, read))}
        for model, ms, read in zip(models, times, reads, strict=True)
    ]
    return Outcome(facts={"context": config.context, "coefficients": coefficients, "timed": timed})


def token_times(coefficients: Mapping[str, float], reads: Mapping[str, Any]) -> Any:
    """Return milliseconds a token from what is done for it."""
    return sum((coefficients[kind] * amount for kind, amount in reads.items()), start=coefficients["token"])


def whole_reads(model: Layout, tokens: int) -> dict[str, float]:
    """Return what one model does for a token after so many."""
    whole = Shapes(model, {"layers": [model.num_layers]})
    return {kind: float(amount[0]) for kind, amount in whole.reads(tokens).items()}


def _sizes(model: Layout) -> dict[str, int]:
    return {"layers": model.num_layers, **{axis: model.length(axis) for axis in model.width_axes}}
