"""Steps with settings of every kind, so that what is tested here does not change with the real ones."""

from types import SimpleNamespace
from typing import Literal

import pytest
from pydantic import Field

from compress import plugins
from compress.plugins import DataRef, ModelRef, StepConfig
from compress.quantities import Count


class Target(StepConfig):
    params: str
    """Share of the parameters to keep."""


class Shape(StepConfig):
    ffn: int
    """Neurons of the MLP."""


class Width(StepConfig):
    target: Target | Shape
    """How small to make the model: a share, or a shape."""
    calibration: DataRef = "calibration"
    """Text to calibrate with."""


class Distill(StepConfig):
    tokens: Count
    """How many tokens to train on. More is better."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest learning rate."""
    data: DataRef = "recovery"
    """What to train on."""
    teacher: ModelRef = "original"
    """Whom to learn from."""


class Rtn(StepConfig):
    bits: Literal[4, 8] = 4
    """Bits of a weight."""


CONFIGS = {"distill": Distill, "prune.width": Width, "quantize.rtn": Rtn}


@pytest.fixture(autouse=True)
def fake_steps(monkeypatch):
    monkeypatch.setattr(plugins, "step_names", lambda: sorted(CONFIGS))
    monkeypatch.setattr(
        plugins, "step", lambda name: SimpleNamespace(Config=CONFIGS[name], __doc__=f"The step {name}.")
    )
