"""Parents and calibration data for the pruning steps."""

import json
from pathlib import Path

import numpy as np
import torch

from compress import plugins
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.tiny import token_ids, write_tiny


def calibration(folder: Path, num: int = 6, length: int = 16) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    token_ids(num, length, seed=5).numpy().astype("<u2").tofile(folder / "tokens.bin")
    facts = {"num_sequences": num, "sequence_length": length, "dtype": np.dtype("<u2").str}
    (folder / "tokens.json").write_text(json.dumps(facts))
    return Artifact(key="calibration", kind="tokens", path=folder)


def parent_of(folder: Path) -> Artifact:
    return Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))


def tiny_parent(folder: Path, family: str, change=None, **changes) -> Artifact:
    """A tiny checkpoint in fp64, its weights passed through `change(model)` first."""
    write_tiny(folder, family, **changes)
    model = load_model(folder, dtype=torch.float64)
    with torch.no_grad():
        if change is not None:
            change(model)
    model.save_pretrained(folder)
    return parent_of(folder)


def pruned(use: str, parent: Artifact, folder: Path, seed: int = 0, **settings):
    """Run a pruning step; return its outcome and its settings."""
    step = plugins.step(use)
    config = step.Config(**settings)
    context = FakeContext(folder, inputs={"calibration": calibration(folder.with_name("data"))}, seed=seed)
    outcome = step.run(parent, config, context)
    return outcome, config


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype=torch.float64)(token_ids()).logits
