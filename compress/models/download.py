"""A checkpoint from the hub as a node of the plan: its configuration is fetched to plan, its weights to run.

The files stay in the hub's own cache; the artifact only points at them (``facts["location"]``).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from compress.errors import InputError
from compress.plugins import Context, StepConfig
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 1
ACCEPTS: tuple[str, ...] = ()
PRODUCES = "hf"


class Config(StepConfig):
    """Which checkpoint, exactly."""

    id: str
    """Repository on the hub, such as ``Qwen/Qwen3-8B``."""
    commit: str
    """The commit its revision meant when the plan was made."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The ``config.json`` of that commit."""


def resolve(repository: str, revision: str) -> Config:
    """Ask the hub which commit a revision is. Raises `InputError` when it cannot be asked or does not know."""
    from compress.models.hub import fetch_config

    config, commit = fetch_config(repository, revision)
    return Config(id=repository, commit=commit, config=config)


def predict(spec: ModelSpec | None, config: Config) -> ModelSpec:
    """Return the checkpoint's tensors as its family's table says them. Raises `InputError` for other families."""
    from compress.models.layout import spec_from_config

    dtypes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    stored = str(config.config.get("dtype") or config.config.get("torch_dtype") or "float32")
    if stored not in dtypes:
        raise InputError(f"{config.id} is stored as {stored}. Allowed: {', '.join(dtypes)}")
    return spec_from_config(config.config, dtypes[stored])


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return what the download takes on disk."""
    return Work(disk_bytes=predict(spec, config).weight_bytes)


def run(parent: Artifact | None, config: Config, context: Context) -> Outcome:
    """Download the files into the hub's cache and point at them."""
    from compress.models.hub import fetch
    from compress.models.spec import read_spec

    folder, _ = fetch(config.id, config.commit)
    (context.folder / "source.txt").write_text(f"{config.id}@{config.commit}\n")
    return Outcome(spec=read_spec(folder), facts={"location": str(folder), "commit": config.commit})
