"""Running one step of `compress` on plain folders, as the engine would but without its store.

What a step prepares or submits is done in the same process and kept while the same model is worked on with the same
seed, as the store would keep it: scores are taken once for all budgets.
"""

import atexit
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import plugins
from compress.models.spec import read_spec
from compress.records import Artifact


@dataclass
class FolderContext:
    """What a step is given, over plain folders."""

    folder: Path
    partial: Path
    inputs: Mapping[str, Artifact]
    seed: int
    say: str | None = None
    stopping: bool = False
    warnings: list[str] = field(default_factory=list)
    _said: float = 0.0

    def stop(self) -> None:
        raise KeyboardInterrupt

    def stop_takes(self, seconds: float) -> None:
        pass

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        if self.say is not None and time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{self.say}: {done:,.0f} of {total:,.0f} {unit}  {shown}", flush=True)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def submit(
        self,
        use: str,
        settings: Mapping[str, Any],
        parent: Artifact,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        config = plugins.internal(use).Config.model_validate(dict(settings))
        return WORK.result(use, config, parent, dict(inputs or {}), self.seed)


class Work:
    """What was prepared and submitted for one model and seed."""

    def __init__(self) -> None:
        self._for: tuple[str, int] | None = None
        self._folder = Path()
        self._done: dict[str, Artifact] = {}

    def begin(self, parent: Artifact, seed: int) -> None:
        """Forget what was done for another model or seed."""
        if self._for != (parent.key, seed):
            self.drop()
            self._for, self._folder = (parent.key, seed), Path(tempfile.mkdtemp())

    def drop(self) -> None:
        """Remove everything."""
        if self._for is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._for, self._done = None, {}

    def result(
        self, use: str, config: Any, parent: Artifact, inputs: dict[str, Artifact], seed: int
    ) -> Artifact:
        """Return what a module makes of a parent, made now if it is not there."""
        names = {name: artifact.key for name, artifact in inputs.items()}
        decides = [use, config.model_dump(mode="json"), parent.key, names, seed]
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._done:
            step, folder = plugins.internal(use), self._folder / key
            partial = self._folder / f"{key}.partial"
            for made in (folder, partial):
                made.mkdir()
            outcome = step.run(parent, config, FolderContext(folder, partial, inputs, seed))
            shutil.rmtree(partial)
            self._done[key] = Artifact(
                key=key, kind=step.PRODUCES, path=folder, spec=outcome.spec, facts=outcome.facts
            )
        return self._done[key]


WORK = Work()
atexit.register(WORK.drop)


def prepared(
    step: Any, config: Any, parent: Artifact, given: dict[str, Artifact], seed: int
) -> dict[str, Artifact]:
    """Return the results of all a step wants done before it, by name."""
    wanted = plugins.prepared(step, config)
    assert all(each.on is None for each in wanted.values()), (
        "only work on the step's own parent is prepared here"
    )
    if wanted:
        WORK.begin(parent, seed)
    made = {}
    for name, work in wanted.items():
        needs = {reference: given[reference] for reference in plugins.references_of(work.config)}
        made[name] = WORK.result(work.use, work.config, parent, needs, seed)
    return made


def run_step(
    use: str,
    parent: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    seed: int,
    inputs: Mapping[str, Path] | None = None,
    kind: str = "hf",
    say: str | None = None,
) -> dict[str, Any]:
    """Run a step with its defaults and these settings into `folder`; return its facts and warnings.

    Work left by a stopped call is taken up; a folder left half-written is written anew.
    """
    step = plugins.internal(use)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    for made in (folder, partial):
        made.mkdir(parents=True, exist_ok=True)
    warned: list[str] = []
    given = {name: _artifact(path) for name, path in (inputs or {}).items()}
    source, config = _artifact(parent, kind), step.Config(**settings)
    given |= prepared(step, config, source, given, seed)
    outcome = step.run(source, config, FolderContext(folder, partial, given, seed, say, warnings=warned))
    shutil.rmtree(partial)
    return {**outcome.facts, "warnings": warned}


def _artifact(path: Path, kind: str = "hf") -> Artifact:
    """Return a folder as the engine would name it; packed tokens tell themselves by their file."""
    if (path / "tokens.json").is_file():
        return Artifact(key=str(path), kind="tokens", path=path)
    return Artifact(key=str(path), kind=kind, path=path, spec=read_spec(path) if kind == "hf" else None)
