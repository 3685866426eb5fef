"""Hand-written stand-ins for what the engine gives a step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import plugins
from compress.digests import canonical_digest
from compress.pipeline.keys import ingredients
from compress.records import Artifact, Outcome


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
    stop_seconds: float = 0.0
    reports: list[tuple[float, float, str, dict[str, float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    submitted: dict[str, Artifact] = field(default_factory=dict)
    """What was asked of other modules, by key: asking for the same again gives what is there."""

    def __post_init__(self) -> None:
        if self.partial == Path("unset"):
            self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.partial.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        raise Stopped

    def stop_takes(self, seconds: float) -> None:
        self.stop_seconds = seconds

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        self.reports.append((done, total, unit, figures))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def submit(
        self,
        use: str,
        settings: Mapping[str, Any],
        parent: Artifact,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        """Run the module here and now, in a folder beside this one."""
        module: Any = plugins.internal(use)
        config = module.Config.model_validate(dict(settings))
        inputs = dict(inputs or {})
        assert set(plugins.needed(module, config)) <= set(inputs)
        keys = {name: artifact.key for name, artifact in inputs.items()}
        key = canonical_digest(ingredients(use, config, parent.key, keys, self.seed))
        if key not in self.submitted:
            folder = self.folder.with_name(f"{self.folder.name}.submitted") / key[:8]
            context = FakeContext(folder, inputs=inputs, seed=self.seed)
            outcome, kind = _call(module, parent, config, context)
            self.submitted[key] = Artifact(
                key=key, kind=kind, path=folder, spec=outcome.spec, facts=outcome.facts
            )
        return self.submitted[key]


def _call(module: Any, parent: Artifact, config: Any, context: FakeContext) -> tuple[Outcome, str]:
    """Do what the engine's worker does with a step or a measurement."""
    if not hasattr(module, "measure"):
        return module.run(parent, config, context), module.PRODUCES
    dumped = [m.model_dump(mode="json") for m in module.measure(parent, config, context)]
    (context.folder / "measurements.json").write_text(json.dumps(dumped))
    return Outcome(), "measurements"


class StopsAfter(FakeContext):
    """Asked to stop after so many reports of progress: steps, for a training."""

    after = 4

    @property
    def stopping(self) -> bool:
        return len(self.reports) >= self.after

    @stopping.setter
    def stopping(self, value: bool) -> None:
        pass
