"""The original in the runtime of every candidate: without it, what a runtime brings is taken for what compressing did.

A candidate's file is made by the steps at its end that quantize and export; all before them (prune, distill) leave a
float model. Those steps applied to the original make what a user would have without compressing.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress import plugins
from compress.errors import InputError
from compress.pipeline.plan import Node
from compress.pipeline.sections import ORIGINAL, Pipeline, StepEntry

if TYPE_CHECKING:
    from compress.pipeline.planner import Builder

FLOAT = "hf"
"""The kind of what prune and distill make, and may be built on: every other is a file for some runtime."""


def add_rivals(builder: "Builder") -> None:
    """Add a baseline ``original_in_NAME`` for each candidate whose file some steps make, unless one is just that.

    Candidates are noted with their baseline (`Node.rival_of`). Where the steps do not fit the original, that is noted
    in `builder.remarks` instead.
    """
    if not builder.pipeline.same_runtime_baselines:
        return
    for leaf in _leaves(builder.pipeline):
        steps = _file_makers(leaf, builder.pipeline)
        if not steps:
            continue
        name = _free_name(f"{ORIGINAL}_in_{leaf.name}", builder.pipeline)
        try:
            _add(builder, _on_the_original(steps, name, leaf), leaf.name)
        except InputError as error:
            builder.remarks.append(f"{leaf.name} has no baseline in its own runtime: {error}")


def _add(builder: "Builder", steps: tuple[StepEntry, ...], leaf: str) -> None:
    rival = builder.same_model(steps) or builder.add_baseline(steps)
    builder.nodes[rival.name] = rival.model_copy(update={"rival_of": (*rival.rival_of, leaf)})


def _leaves(pipeline: Pipeline) -> Iterator[StepEntry]:
    built_on = {step.parent for step in pipeline.steps}
    yield from (step for step in pipeline.steps if step.name not in built_on)


def _file_makers(leaf: StepEntry, pipeline: Pipeline) -> tuple[StepEntry, ...]:
    """Return the steps that make the file of a candidate; none where nothing was compressed before them."""
    by_name = {step.name: step for step in pipeline.steps}
    line = [leaf]
    while line[0].parent != ORIGINAL:
        line.insert(0, by_name[line[0].parent])
    makers = tuple(step for step in line if plugins.internal(step.use).PRODUCES != FLOAT)
    return makers if len(makers) < len(line) else ()


def _on_the_original(steps: tuple[StepEntry, ...], name: str, leaf: StepEntry) -> tuple[StepEntry, ...]:
    parents = (ORIGINAL, *(f"{name}/{index + 1}" for index in range(len(steps) - 1)))
    names = (*parents[1:], name)
    return tuple(
        step.model_copy(update={"name": own, "parent": parent, "measure": leaf.measure})
        for step, own, parent in zip(steps, names, parents, strict=True)
    )


def _free_name(name: str, pipeline: Pipeline) -> str:
    taken = {step.name for step in pipeline.steps} | {baseline.name for baseline in pipeline.baselines}
    while name in taken:
        name += "_"
    return name


def rival_of(leaf: str, nodes: "dict[str, Node]") -> str | None:
    """Return the name of the baseline that is the original in a candidate's runtime."""
    return next((node.name for node in nodes.values() if leaf in node.rival_of), None)
