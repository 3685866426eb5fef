"""Settings that every pruning step shares."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.plugins import DataRef, Manner, StepConfig
from compress.prune.interface import Unit
from compress.prune.target import Size, Target
from compress.quantities import Count

Memory = Annotated[Literal["auto", "stream", "ram"], Manner()]
"""Where the parent's weights are while calibration text runs through it."""


class CalibrationSettings(StepConfig):
    """What the parent is observed on, and how."""

    calibration: DataRef = "calibration"
    """The data units are scored, and weights refitted, on. Only read forward; nothing is trained."""
    tokens: Count = Field(default=131_072)
    """At most this many tokens of it are read, chosen by the seed."""
    memory: Memory = "auto"
    """``stream`` holds one layer at a time, ``ram`` the whole model; ``auto`` streams what takes more than half of the
    available memory. The result is the same, bit for bit."""


class Cut(StepConfig):
    """What a step will cut; the shape follows from it and the model."""

    target: Target
    axes: tuple[Unit, ...] | None = None
    """Default: ``layers`` and all that ``prune.width`` narrows."""
    align: dict[Unit, Size] = Field(default_factory=dict)


class ScoreSettings(CalibrationSettings):
    """Which metric, on which text."""

    importance: str
    """A file of ``compress/prune/importance``."""
    cut: Cut | None = None
    """Layers are scored as far as this needs; left out, for every cut."""


SCORES = "scores.safetensors"
"""Where a scores artifact has them: a tensor for every kind of unit."""


class CompensationSettings(CalibrationSettings):
    """And how what stays makes up for what goes."""

    compensate: bool = True
    """Refit what stays by least squares to the parent's own outputs, layer by layer; no training. See
    ``compress/prune/compensation.py``."""
    reconstruct: int = Field(default=0, ge=0)
    """After refitting a layer, train it by itself, for so many steps of 2,048 calibration tokens, to end where the
    parent's ends; what is no nearer on text held back is not kept. Meant for large cuts, and for text enough that it is
    not learned by heart. Not done while `prune.search` tries shapes. See ``compress/prune/reconstruction.py``."""

    @model_validator(mode="after")
    def _only_what_is_refitted_is_trained(self) -> Self:
        if self.reconstruct and not self.compensate:
            raise ValueError("reconstruct goes on from refitted layers: it needs compensate: true")
        return self


def few_steps(settings: CompensationSettings) -> dict[str, int]:
    """Return what a rehearsal changes: layers are trained, if they are, for two steps."""
    return {"reconstruct": min(2, settings.reconstruct)}
