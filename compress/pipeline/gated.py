"""That what a gate judges is measured, of every step that a pipeline ends in, and can be judged at all."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from compress import plugins
from compress.errors import InputError, nearest
from compress.pipeline.plan import Node
from compress.pipeline.sections import Limit, Measurement, Pipeline, StepEntry

FEWEST_ROUNDS = 3
"""Timed rounds from which a ratio of times has an interval."""

NAMED: dict[str, Measurement] = {
    "max_quality_drop": "quality",
    "min_accuracy": "quality",
    "max_kl_divergence": "divergence",
}
"""What must be measured for a gate with a name of its own."""


class Judged(NamedTuple):
    """A figure that can be judged: what measures it (None: always known), and by which limits."""

    by: Measurement | None
    limits: tuple[str, ...]
    has_task: bool = False


BOTH_WAYS = ("at_most", "margin")
JUDGED = {
    "accuracy": Judged("quality", ("at_least", "margin"), has_task=True),
    "mean_accuracy": Judged("quality", ("at_least", "margin")),
    "flips": Judged("quality", ("at_most",), has_task=True),
    "perplexity": Judged("divergence", BOTH_WAYS),
    "bits_per_byte": Judged("divergence", BOTH_WAYS),
    "kl_divergence": Judged("divergence", ("at_most",)),
    "same_top_token": Judged("divergence", ("at_least",)),
    "time_per_output_token": Judged("latency", ("margin",)),
    **{
        name: Judged("memory", BOTH_WAYS)
        for name in ("load_memory", "peak_memory", "peak_anonymous_memory", "peak_memory_growth")
    },
    "disk_bytes": Judged(None, BOTH_WAYS),
    "parameters": Judged(None, BOTH_WAYS),
}
OWN = Judged("quality", ("at_most", "at_least", "margin"), has_task=True)
"""A metric that a task declares."""

UNSURE = {
    **dict.fromkeys(
        ("time_to_first_token", "tokens_per_second", "prefill_tokens_per_second", "time_per_pass"),
        "time_per_output_token",
    ),
    "kl_p99": "kl_divergence",
    "word_perplexity": "perplexity",
    "byte_perplexity": "bits_per_byte",
}
"""Figures without an interval, by which nothing can be proved, and the nearest that has one."""

WRITERS_ONLY = ("perplexity", "bits_per_byte", "time_per_output_token")
"""Figures that only a model which writes has, of measurements that others have too."""


def measured_by(limit: Limit) -> Measurement | None:
    """Return what measures the figure of a limit."""
    return JUDGED.get(limit.of, OWN).by


def check_gates_are_measured(pipeline: Pipeline) -> None:
    """Raise `InputError` where a gate judges what a step leaves out, or what nothing could prove."""
    if pipeline.gates is None:
        return
    judged = {gate: what for gate, what in NAMED.items() if getattr(pipeline.gates, gate) is not None}
    for number, limit in enumerate(pipeline.gates.limits):
        if wrong := next(_wrong(limit, pipeline), None):
            raise InputError(f"{pipeline.where('gates', 'limits', number)}: gates: limits: {wrong}")
        if (what := measured_by(limit)) is not None:
            judged[f"limits: {limit.of}"] = what
    for step in _leaves(pipeline):
        for gate, what in judged.items():
            if what not in step.measure:
                raise InputError(
                    f"{step.where}: step '{step.name}': measure leaves out {what}, which gates: {gate} judges"
                )


def check_tokens_are_the_originals(pipeline: Pipeline, nodes: Mapping[str, Node]) -> None:
    """Raise `InputError` where perplexities are judged of a model that cuts text otherwise than the original."""
    for limit in pipeline.gates.limits if pipeline.gates else ():
        for step in _leaves(pipeline) if limit.of == "perplexity" else ():
            if rewriter := _rewriter(step.name, nodes):
                raise InputError(
                    f"gates: limits: 'perplexity' is not measured of '{step.name}': '{rewriter}' gave it other tokens "
                    "than the original's. Its bits_per_byte compares"
                )


def _leaves(pipeline: Pipeline) -> Iterator[StepEntry]:
    built_on = {step.parent for step in pipeline.steps}
    yield from (step for step in pipeline.steps if step.name not in built_on)


def _rewriter(name: str, nodes: Mapping[str, Node]) -> str | None:
    """Return the step, of those a model comes from, that rewrote its tokenizer."""
    node = nodes[name]
    if node.given is None and getattr(plugins.internal(node.use), "REWRITES_TOKENIZER", False):
        return name
    return _rewriter(node.parent, nodes) if node.parent else None


def _wrong(limit: Limit, pipeline: Pipeline) -> Iterator[str]:
    """Yield why a limit cannot be judged."""
    way = next(name for name in ("at_most", "at_least", "margin") if getattr(limit, name) is not None)
    if limit.of in UNSURE:
        yield f"'{limit.of}' has no interval to prove anything by; did you mean '{UNSURE[limit.of]}'?"
    judged = JUDGED.get(limit.of, OWN)
    yield from _wrong_name(limit, judged, pipeline)
    if way not in judged.limits:
        allowed = " and ".join(judged.limits)
        yield f"'{limit.of}' takes no {way}{_why_not(limit.of, way)}. Allowed: {allowed}"
    if limit.is_relative and limit.of in ("accuracy", "mean_accuracy"):
        yield f"a margin of {limit.margin} of an accuracy may mean two things: write 0.03 for three points"
    if limit.of == "time_per_output_token" and pipeline.profile.repeats < FEWEST_ROUNDS:
        yield (
            f"'{limit.of}' needs {FEWEST_ROUNDS} rounds to have an interval; profile: repeats is "
            f"{pipeline.profile.repeats}"
        )


def _wrong_name(limit: Limit, judged: Judged, pipeline: Pipeline) -> Iterator[str]:
    names: Any = plugins.internal("data.task_names")
    evaluate = pipeline.evaluate
    if limit.task is None:
        if judged is OWN:
            known = ", ".join(JUDGED)
            yield (
                f"nothing measured is called '{limit.of}'{nearest(limit.of, JUDGED)} Allowed: {known}; and, "
                "with `task:`, what the task declares"
            )
        return
    if not judged.has_task:
        yield f"'{limit.of}' is of no task: leave `task: {limit.task}` out"
    if limit.task not in evaluate.tasks:
        asked = ", ".join(evaluate.tasks) or "none"
        yield f"'{limit.task}' is none of evaluate: tasks{nearest(limit.task, evaluate.tasks)} Allowed: {asked}"
    if limit.of in ("accuracy", "flips") and limit.task == names.world.TEXT_TASK:
        yield f"'{limit.task}' has no right answers to count"
    if judged is OWN and limit.of not in (metrics := names.metrics(evaluate.task_folder)):
        yield f"no task declares a metric '{limit.of}'{nearest(limit.of, [*JUDGED, *sorted(metrics)])}"


def _why_not(name: str, way: str) -> str:
    if name == "time_per_output_token":
        return ": what is timed at different moments does not compare, its ratio to the original's does"
    return ": it is about the original already" if way == "margin" else ": it is the other way round"
