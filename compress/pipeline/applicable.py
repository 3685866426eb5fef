"""Which measurements apply to a model, given what it is: not every model continues a text, or predicts tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from compress import plugins
from compress.errors import InputError
from compress.pipeline.gated import WRITERS_ONLY, measured_by
from compress.pipeline.plan import Node
from compress.pipeline.sections import MEASUREMENTS, Evaluate, Measurement, Pipeline

NEEDS: dict[Measurement, tuple[str, ...]] = {
    "quality": ("causal-lm",),
    "divergence": ("causal-lm", "masked-lm"),
}
"""What a model must be for a measurement; latency and memory are every model's."""
REASONS = {
    "quality": "it answers no tasks and continues no text",
    "divergence": "it predicts no tokens, so it has no perplexity and no divergence",
}


def applicable(
    model: Node, original: Node, asked: Sequence[Measurement], pipeline: Pipeline
) -> tuple[tuple[Measurement, ...], list[str]]:
    """Return the measurements, of those asked, that apply to a model, and a line for each that is left out of all.

    Raises `InputError` where the pipeline asks by name for what does not apply, for a model nothing applies to, and for
    one that is something else than the original.
    """
    assert model.spec is not None and original.spec is not None
    tasks: Any = plugins.internal("models.task")
    task, words = tasks.task_of(model.spec.config), tasks.in_words(model.spec.config)
    if task != tasks.task_of(original.spec.config):
        theirs = tasks.in_words(original.spec.config)
        raise InputError(f"'{model.name}' is {words}, the original {theirs}: they cannot be compared")
    if task == "other":
        raise InputError(f"'{model.name}' is {words}: nothing here can open or measure it")
    fits = tuple(what for what in MEASUREMENTS if task in NEEDS.get(what, (task,)))
    for what, settings in _asking(pipeline, model.name).items():
        if settings and what not in fits:
            raise InputError(
                f"{settings[0]}: '{model.name}' is {words}: {REASONS[what]}. It is measured by {_listed(fits)}"
            )
    wanted = pipeline.gates.limits if pipeline.gates else ()
    if task != "causal-lm" and (names := [limit.of for limit in wanted if limit.of in WRITERS_ONLY]):
        raise InputError(f"gates: limits: '{model.name}' is {words}: it writes no text and has no {names[0]}")
    left_out = [what for what in asked if what not in fits and model.name == original.name]
    said = [f"the original is {words}; no {what} is measured: {REASONS[what]}" for what in left_out]
    return tuple(what for what in asked if what in fits), said


def _asking(pipeline: Pipeline, name: str) -> Mapping[Measurement, list[str]]:
    """Return the settings that ask for a measurement by name."""
    evaluate, gates = pipeline.evaluate, pipeline.gates
    quality = {
        "evaluate: tasks": evaluate.tasks not in (Evaluate().tasks, ()),
        "evaluate: prompts": bool(evaluate.prompts),
        "gates: max_quality_drop": gates is not None and gates.max_quality_drop is not None,
        "gates: min_accuracy": gates is not None and gates.min_accuracy is not None,
        **_limits_asking(pipeline, "quality"),
        **_steps_asking(pipeline, name, "quality"),
    }
    divergence = {
        "gates: max_kl_divergence": gates is not None and gates.max_kl_divergence is not None,
        **_limits_asking(pipeline, "divergence"),
        **_steps_asking(pipeline, name, "divergence"),
    }
    return {"quality": _true(quality), "divergence": _true(divergence)}


def _limits_asking(pipeline: Pipeline, what: Measurement) -> dict[str, bool]:
    limits = pipeline.gates.limits if pipeline.gates else ()
    return {f"gates: limits: {limit.of}": measured_by(limit) == what for limit in limits}


def _steps_asking(pipeline: Pipeline, name: str, what: Measurement) -> dict[str, bool]:
    return {
        f"{step.where}: step '{step.name}': measure": what in step.measure and step.measure != MEASUREMENTS
        for step in pipeline.steps
        if step.name == name
    }


def _true(asked: Mapping[str, bool]) -> list[str]:
    return [setting for setting, is_there in asked.items() if is_there]


def _listed(measurements: Sequence[str]) -> str:
    return f"{', '.join(measurements[:-1])} and {measurements[-1]}"
