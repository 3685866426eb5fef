"""A checkpoint and a tokenizer that came apart, together in one folder."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from compress.errors import InputError
from compress.models.spec import TOKENIZER_FILES, copy_tokenizer
from compress.plugins import Context, StepConfig
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Config(StepConfig):
    """Nothing to set: the checkpoint is the parent, the tokenizer the input of that name."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the checkpoint's spec: a tokenizer changes no weight."""
    return spec


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the size of the copy (hard links take none, but may be impossible)."""
    return Work(disk_bytes=spec.weight_bytes, serial_seconds=1.0, on_processor=True)


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Link the checkpoint's files and copy the tokenizer's. Raises `InputError` when its ids exceed the model's."""
    from compress.models.checkpoint import load_tokenizer

    assert parent.spec is not None
    tokenizer = context.inputs["tokenizer"].path
    num_ids, vocabulary = len(load_tokenizer(tokenizer)), int(parent.spec.config["vocab_size"])
    if num_ids > vocabulary:
        raise InputError(
            f"the tokenizer in {tokenizer} has {num_ids} ids, the model's vocabulary only {vocabulary}"
        )
    for file in parent.path.iterdir():
        is_tokenizer = any(file.match(pattern) for pattern in TOKENIZER_FILES)
        if (
            file.suffix in (".safetensors", ".json") and not is_tokenizer
        ):  # a link written to changes the user's file
            _link(file, context.folder / file.name)
    copy_tokenizer(tokenizer, context.folder)
    return Outcome(spec=parent.spec)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(
            source.resolve(), target
        )  # of a hub snapshot's links the file, as a relative link leads nowhere here
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
