"""That what a gate judges is measured, of every step that a pipeline ends in."""

from compress.errors import InputError
from compress.pipeline.sections import Pipeline

JUDGED = {
    "max_quality_drop": "quality",
    "min_accuracy": "quality",
    "max_kl_divergence": "divergence",
}
"""What must be measured for a gate."""


def check_gates_are_measured(pipeline: Pipeline) -> None:
    """Raise `InputError` where a gate judges what a step leaves out: unmeasured it could only fail."""
    if pipeline.gates is None:
        return
    built_on = {step.parent for step in pipeline.steps}
    for step in pipeline.steps:
        for gate, what in JUDGED.items():
            is_gate = getattr(pipeline.gates, gate) is not None and step.name not in built_on
            if is_gate and what not in step.measure:
                raise InputError(
                    f"{step.where}: step '{step.name}': measure leaves out {what}, which gates: {gate} judges"
                )
