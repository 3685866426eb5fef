"""What a pipeline may ask of a model that reads and does not write (BERT): all but answers and continuations."""

from compress import plugins
from compress.errors import InputError
from compress.pipeline.plan import Node
from compress.pipeline.schema import Evaluate, Pipeline


def only_reads(model: Node, original: Node, pipeline: Pipeline) -> bool:
    """Return whether a model is an encoder.

    Raises `InputError` where the pipeline asks what no encoder can answer, or compares one with a model that writes.
    """
    assert model.spec is not None and original.spec is not None
    is_encoder = plugins.internal("models.layout").is_encoder
    reads = bool(is_encoder(model.spec.config))
    if reads != is_encoder(original.spec.config):
        does, other = ("only reads", "writes text") if reads else ("writes text", "only reads")
        raise InputError(
            f"'{model.name}' ({model.spec.model_type}) {does}, the original {other}: they cannot be compared"
        )
    if not reads:
        return False
    if asked := _of_writers(pipeline):
        raise InputError(
            f"{asked[0]}: '{model.name}' ({model.spec.model_type}) is an encoder: it answers no tasks and continues no "
            "text. It is measured by its divergence from the original (gates: max_kl_divergence), speed and memory"
        )
    return True


def _of_writers(pipeline: Pipeline) -> list[str]:
    """Return the settings that only models that write can meet."""
    evaluate, gates = pipeline.evaluate, pipeline.gates
    asked = {
        "evaluate: tasks": evaluate.tasks not in ((), Evaluate().tasks),
        "evaluate: prompts": bool(evaluate.prompts),
        "gates: max_quality_drop": gates is not None and gates.max_quality_drop is not None,
        "gates: min_accuracy": gates is not None and gates.min_accuracy is not None,
    }
    return [setting for setting, is_there in asked.items() if is_there]
