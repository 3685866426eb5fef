"""What looks wrong about a training in a plan, though it can be done."""

from collections.abc import Iterator, Sequence
from typing import Any

from compress.plugins import Planned
from compress.train.schedule import Schedule


def training_advice(steps: Sequence[Planned]) -> list[str]:
    """Return a line for everything in the steps' settings that defeats its own purpose."""
    return [line for step in steps for line in (*_measured_on(step), *_never_stops(step))]


def _measured_on(step: Planned) -> Iterator[str]:
    config: Any = step.config
    if "data" in step.measured_on:
        yield (
            f"'{step.name}' learns from '{config.data}', on which `evaluate.text` measures: its perplexity and "
            "divergence there say nothing of other text. Learn from other data"
        )
    if "held_out" in step.inputs and step.inputs["held_out"] == step.inputs["data"]:
        yield (
            f"'{step.name}' learns from '{config.data}' and evaluates on '{config.held_out}', which hold the same: it "
            "will refuse to. Evaluate on other data"
        )


def _never_stops(step: Planned) -> Iterator[str]:
    config: Any = step.config
    if config.stop_after is None:
        return
    num_steps = Schedule.of(config, 1).num_steps  # to within the rounding to whole rows
    every = max(1, round(config.evaluate_every * num_steps))
    num_looks = -(-num_steps // every)
    if config.stop_after >= num_looks:
        yield (
            f"`stop_after: {config.stop_after}` never stops '{step.name}': after its first evaluation there are "
            f"{num_looks} more. The weights of the lowest held-out loss are kept all the same"
        )
