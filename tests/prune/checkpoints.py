"""Parents and calibration data for the pruning steps."""

import json
from pathlib import Path

import numpy as np
import torch

from compress import plugins
from compress.models.checkpoint import load_model
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune.calibration import Calibration
from compress.prune.interface import importance, needs_gradient
from compress.prune.scratch import Scratch
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
    """Run a pruning step and what it prepares; return its outcome and its settings.

    Nothing is refitted unless asked: most tests are about what slicing alone promises.
    """
    step = plugins.step(use)
    config = step.Config(**{"compensate": False, **settings})
    outcome = step.run(parent, config, prepared_context(step, config, parent, folder, seed))
    return outcome, config


def prepared_context(step, config, parent: Artifact, folder: Path, seed: int = 0, **context) -> FakeContext:
    """A context whose inputs are there: calibration text, and the results of the nodes the step prepares."""
    inputs = {"calibration": calibration(folder.with_name("data"))}
    for name, wanted in plugins.prepared(step, config).items():
        module = plugins.internal(wanted.use)
        below = FakeContext(folder.with_name(f"{folder.name}.{name}"), inputs=dict(inputs), seed=seed)
        module.run(parent, wanted.config, below)
        inputs[name] = Artifact(key=name, kind=module.PRODUCES, path=below.folder)
    return FakeContext(folder, inputs=inputs, seed=seed, **context)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype=torch.float64)(token_ids()).logits


def observed(folder: Path, *, resident: bool = True, rows: int = 2, seed: int = 0) -> Calibration:
    """A checkpoint about to read 4 sequences of 12 tokens, `rows` at a time; streamed with files for its states."""
    scratch = folder.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    return Calibration(
        LayerwiseModel.open(folder, layout(read_spec(folder).config), resident=resident),
        token_ids(4, 12, seed=5).split(rows),
        Scratch(None if resident else scratch),
        seed,
    )


def scored(name: str, calibration: Calibration) -> dict[str, torch.Tensor]:
    """A metric's scores, in the mode in which `prune.scores` calls it."""
    metric = importance(name, [])
    with torch.inference_mode(not needs_gradient(metric)):
        return metric.score(calibration)
