"""Hand-written stand-ins for what the engine gives a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compress.records import Artifact


class Stopped(Exception):
    """What `FakeContext.stop` raises where the engine would unwind the step."""


@dataclass
class FakeContext:
    """A step's context over a plain folder; remembers what it was told."""

    folder: Path
    partial: Path = field(default=Path("unset"))
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    seed: int = 0
    stopping: bool = False
    reports: list[tuple[float, float, str, dict[str, float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.partial == Path("unset"):
            self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.partial.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        raise Stopped

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        self.reports.append((done, total, unit, figures))

    def warn(self, message: str) -> None:
        self.warnings.append(message)
