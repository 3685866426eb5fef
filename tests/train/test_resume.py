"""Killed or stopped at any moment, a training ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compress.train import checkpoint, step
from tests.fakes import FakeContext, Stopped, StopsAfter
from tests.train.inputs import context, parent, payload

CONFIG = step.Config(tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0)


class Killed(BaseException):
    """The end of the process, as far as a test inside it can tell."""


class StopsAt(StopsAfter):
    """Asked to stop after some steps."""

    after = 5


class DiesAt(FakeContext):
    """Dies after a step, before its checkpoint."""

    after = 5

    def progress(self, done, total, unit, **figures) -> None:
        super().progress(done, total, unit, **figures)
        if len(self.reports) == self.after:
            raise Killed


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    model = parent(folder / "parent", attention_dropout=0.1)
    step.run(model, CONFIG, context(folder / "result"))
    return model, payload(folder / "result")


@pytest.mark.parametrize(("kind", "end"), [(StopsAt, Stopped), (DiesAt, Killed)])
def test_interrupted_and_resumed_training_ends_in_the_same_bytes(undisturbed, tmp_path, kind, end):
    model, expected = undisturbed
    for _ in range(2):
        with pytest.raises(end):
            step.run(model, CONFIG, context(tmp_path / "result", kind=kind))
        assert payload(tmp_path / "result") == {}
    outcome = step.run(model, CONFIG, context(tmp_path / "result"))
    assert payload(tmp_path / "result") == expected
    assert outcome.facts["resumed"] == 2
    assert outcome.facts["curve"][-1]["tokens"] == outcome.facts["tokens"] == CONFIG.tokens


def test_the_micro_batch_and_threads_of_the_first_start_are_kept(undisturbed, tmp_path):
    model, expected = undisturbed
    with pytest.raises(Killed):
        step.run(model, CONFIG, context(tmp_path / "result", kind=DiesAt))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        outcome = step.run(model, CONFIG, context(tmp_path / "result"))
        assert outcome.facts["num_threads"] == threads
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert payload(tmp_path / "result") == expected


class Numbered:
    """A training of which only its step is kept."""

    def __init__(self, step: int) -> None:
        self.step = step

    def state(self):
        return {"step": self.step}

    def restore(self, state):
        self.step = state["step"]


def test_a_checkpoint_cut_short_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, seconds=0)
    checkpoints.write(Numbered(1))

    def cut_short(state, stream):
        stream.write(b"half")
        raise Killed

    monkeypatch.setattr(checkpoint.torch, "save", cut_short)
    with pytest.raises(Killed):
        checkpoints.write(Numbered(2))
    found = Numbered(3)
    checkpoints.restore(found)
    assert found.step == 1


def test_checkpoints_are_due_by_the_clock_and_never_take_more_than_a_twentieth(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 20)
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    checkpoints = checkpoint.Checkpoints(tmp_path, seconds=30)
    assert not checkpoints.due  # nothing is new yet
    checkpoints.write(Numbered(0))
    now = 29.0
    assert not checkpoints.due
    now = 30.0
    assert checkpoints.due

    def slow(state, stream):
        nonlocal now
        now += 10

    monkeypatch.setattr(checkpoint.torch, "save", slow)
    checkpoints.write(Numbered(0))
    now = 40 + 199.0
    assert not checkpoints.due
    now = 40 + 200.0
    assert checkpoints.due


PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
from compress.models.spec import read_spec
from compress.records import Artifact
from tests.train.inputs import context
from tests.train.test_resume import CONFIG
from compress.train import step
folder = Path(sys.argv[1])
model = Artifact(key="parent", kind="hf", path=folder / "parent", spec=read_spec(folder / "parent"))
step.run(model, CONFIG.model_copy(update={"tokens": 16 * 4 * 400}), context(folder / "result"))
"""


def run_program(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(torch.get_num_threads())]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})


@pytest.mark.slow
def test_a_process_killed_by_the_kernel_resumes_to_the_same_bytes(tmp_path):
    for name in ("whole", "killed"):
        parent(tmp_path / name / "parent")
    assert run_program(tmp_path / "whole").wait() == 0
    for _ in range(2):
        process = run_program(tmp_path / "killed")
        written = tmp_path / "killed" / "result.partial" / "checkpoint.pt"
        deadline = time.monotonic() + 60
        while not written.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert run_program(tmp_path / "killed").wait() == 0
    assert payload(tmp_path / "killed" / "result") == payload(tmp_path / "whole" / "result")
