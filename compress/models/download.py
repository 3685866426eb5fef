"""A checkpoint from the hub as a node of the plan: its configuration is fetched to plan, its weights to run.

The files stay in the hub's own cache; the artifact only points at them (``facts["location"]``).
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from compress.errors import InputError
from compress.plugins import Context, StepConfig
from compress.records import Artifact, ModelSpec, Outcome, Work
from compress.speed import NETWORK_BYTES_PER_SECOND

VERSION = 1
ACCEPTS: tuple[str, ...] = ()
PRODUCES = "hf"
COMPUTES = False
PUBLISHED = Path(__file__).with_name("published.json")

START_SECONDS = 3.0
"""To ask the hub for its files, one by one."""


class Config(StepConfig):
    """Which checkpoint, exactly."""

    id: str
    """Repository on the hub, such as ``Qwen/Qwen3-8B``."""
    commit: str
    """The commit its revision meant when the plan was made."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The ``config.json`` of that commit."""


NOT_LOOKED_UP = "not looked up"
"""Stands for a commit in a plan that is made without the hub. No revision is called so: such a plan cannot be run."""


def resolve(repository: str, revision: str) -> Config:
    """Ask the hub which commit a revision is. Raises `HubUnavailable` when it cannot be asked, `InputError` when
    it does not know.
    """
    from compress.models.hub import fetch_config

    config, commit = fetch_config(repository, revision)
    return Config(id=repository, commit=commit, config=config)


def assumed(repository: str, shape: Mapping[str, Any]) -> Config:
    """Return a checkpoint by its shape alone, to plan with and never to run."""
    return Config(id=repository, commit=NOT_LOOKED_UP, config=dict(shape))


def published(repository: str) -> dict[str, Any] | None:
    """Return what the model's owner published as its ``config.json``, of those that come with this package."""
    shape: dict[str, Any] | None = _published().get(repository)
    return shape


def names_published() -> tuple[str, ...]:
    """Return the models whose shapes come with this package."""
    return tuple(_published())


@cache
def _published() -> dict[str, Any]:
    shapes: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return shapes


def predict(spec: ModelSpec | None, config: Config) -> ModelSpec:
    """Return the checkpoint's tensors as its family's table says them. Raises `InputError` for other families."""
    from compress.models.layout import spec_from_config

    dtypes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    stored = str(config.config.get("dtype") or config.config.get("torch_dtype") or "float32")
    if stored not in dtypes:
        raise InputError(f"{config.id} is stored as {stored}. Allowed: {', '.join(dtypes)}")
    return spec_from_config(config.config, dtypes[stored])


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return what the download takes on disk, and on a line of about a gigabit."""
    size = predict(spec, config).weight_bytes
    return Work(disk_bytes=size, serial_seconds=START_SECONDS + size / NETWORK_BYTES_PER_SECOND)


def run(parent: Artifact | None, config: Config, context: Context) -> Outcome:
    """Download the files into the hub's cache and point at them."""
    from compress.models.hub import fetch
    from compress.models.spec import read_spec

    folder, _ = fetch(config.id, config.commit)
    (context.folder / "source.txt").write_text(f"{config.id}@{config.commit}\n")
    return Outcome(spec=read_spec(folder), facts={"location": str(folder), "commit": config.commit})
