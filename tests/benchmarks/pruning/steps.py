"""Running one step of `compress` on plain folders, as the engine would but without its store."""

import shutil
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

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        if self.say is not None and time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{self.say}: {done:,.0f} of {total:,.0f} {unit}  {shown}", flush=True)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


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
    given = {name: _artifact(path) for name, path in (inputs or {}).items()}
    context = FolderContext(folder, partial, given, seed, say)
    outcome = step.run(_artifact(parent, kind), step.Config(**settings), context)
    shutil.rmtree(partial)
    return {**outcome.facts, "warnings": context.warnings}


def _artifact(path: Path, kind: str = "hf") -> Artifact:
    """Return a folder as the engine would name it; packed tokens tell themselves by their file."""
    if (path / "tokens.json").is_file():
        return Artifact(key=str(path), kind="tokens", path=path)
    return Artifact(key=str(path), kind=kind, path=path, spec=read_spec(path) if kind == "hf" else None)
