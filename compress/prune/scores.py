"""The importance of a model's units: calibration text read once, for every target that is ever asked for."""

from collections.abc import Mapping

from compress.models.layout import layout
from compress.plugins import Context
from compress.prune.interface import importance, needs_gradient, passes_taken, tokens_read, work_beside
from compress.prune.layer_scores import layers_left
from compress.prune.planning import calibrated_work, float_bytes, is_streamed, known_tokens
from compress.prune.settings import SCORES, ScoreSettings
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 5
ACCEPTS = ("hf",)
PRODUCES = "scores"
INTERNAL = True

Config = ScoreSettings


def predict(spec: ModelSpec, config: Config) -> None:
    """Scores are no model. Raises `InputError` for an unknown metric."""
    importance(config.importance, ())


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of the metric's passes over the calibration data, and of what it makes of them."""
    metric = importance(config.importance, ())
    left = layers_left(config.cut, layout(spec.config), float_bytes(spec))
    passes = passes_taken(metric, spec, left)
    tokens = tokens_read(metric, known_tokens(config.tokens, inputs))
    work = calibrated_work(spec, spec, tokens, passes, is_streamed(spec, config.memory))
    return work.plus(work_beside(metric, spec, tokens, left)).model_copy(update={"disk_bytes": 0})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write ``scores.safetensors``. Raises `StepFailed` when a score is not a number."""
    import torch
    from safetensors.torch import save_file

    from compress.errors import StepFailed
    from compress.prune.calibration import open_calibration

    assert parent.spec is not None
    before = layout(parent.spec.config)
    metric = importance(config.importance, ())
    tokens = tokens_read(metric, config.tokens)
    with torch.inference_mode(not needs_gradient(metric)):
        left = layers_left(config.cut, before, float_bytes(parent.spec))
        calibration = open_calibration(parent.path, before, tokens, config.memory, context, left)
        scores = metric.score(calibration)
    for unit, values in scores.items():
        if bool(values.isnan().any()):
            raise StepFailed(
                f"the importance of {unit} is not finite: the checkpoint holds NaN or infinite weights"
            )
    save_file({unit: values.contiguous() for unit, values in scores.items()}, context.folder / SCORES)
    return Outcome(facts={"tokens": calibration.num_tokens})
