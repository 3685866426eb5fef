"""How far a recovered candidate is from the model it learned from, on calibration text kept for judging.

`prune.search` submits it for every candidate it distilled.
"""

from compress.models.layout import layout
from compress.plugins import Context, ModelRef
from compress.prune.settings import CalibrationSettings
from compress.quantities import Count
from compress.records import Artifact, Outcome

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "divergences"
INTERNAL = True


class Config(CalibrationSettings):
    """Whom to compare with, on which text."""

    teacher: ModelRef
    """The model it learned from."""
    trial_tokens: Count
    """What candidates were refitted on: a third as many other tokens are for judging."""


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Return, as facts, ``divergence``, KL(teacher ‖ parent) in nats a token, and its standard ``error``."""
    import torch

    from compress.models.device import default_device
    from compress.models.layerwise import LayerwiseModel
    from compress.models.token_map import mapped_ids
    from compress.prune.calibration import is_resident
    from compress.prune.judge import Judge, last_states
    from compress.prune.trials import read_parts

    device = default_device()

    def opened(model: Artifact) -> LayerwiseModel:
        assert model.spec is not None
        resident = is_resident(model.path, config.memory, device)
        return LayerwiseModel.open(model.path, layout(model.spec.config), device=device, resident=resident)

    teacher = context.inputs["teacher"]
    _, judged = read_parts(context, config.trial_tokens, device)
    ids = mapped_ids(parent.path, teacher.path)
    judge = Judge(opened(teacher), judged, None if ids is None else torch.tensor(ids, device=device))
    student = opened(parent)
    with torch.inference_mode():
        return Outcome(facts=judge.divergence(student, last_states(student, judged)).as_facts())
