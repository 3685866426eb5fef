"""Checkpoints that are written while training goes on."""

import errno
import threading
import time

import pytest
import torch

from compress.train import background, checkpoint, loop, step
from compress.train.background import HostCopies, host_memory_left
from compress.train.checkpoint import Checkpoints
from tests.fakes import FakeContext, Stopped
from tests.train.inputs import context, parent, payload
from tests.train.test_resume import DiesAt, Killed, Numbered, StopsAt
from tests.train.test_sharded import StopsAfter, run_step

CONFIG = step.Config(
    tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0, precision="fp32"
)


@pytest.fixture(autouse=True)
def write_beside(monkeypatch):
    """Write as on a GPU, as often as writing allows."""
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    monkeypatch.setattr(loop, "_host_copies", HostCopies)


class Slow:
    """A disk that takes its time."""

    def __init__(self, monkeypatch, seconds: float) -> None:
        self.writing, self.num = threading.Event(), 0
        save = torch.save

        def slowly(state, stream):
            self.writing.set()
            self.num += 1
            time.sleep(seconds)
            save(state, stream)
            self.writing.clear()

        monkeypatch.setattr(checkpoint.torch, "save", slowly)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    slow, steps_meanwhile = Slow(monkeypatch, 0.5), []

    class Counting(FakeContext):
        def progress(self, done, total, unit, **figures):
            if slow.writing.is_set():
                steps_meanwhile.append(done)

    model = parent(tmp_path / "parent")
    step.run(model, CONFIG, context(tmp_path / "slow", kind=Counting))
    assert slow.num < 12 and len(steps_meanwhile) >= 3
    monkeypatch.undo()
    step.run(model, CONFIG, context(tmp_path / "plain"))
    assert payload(tmp_path / "slow") == payload(tmp_path / "plain")


@pytest.mark.parametrize(("kind", "end"), [(StopsAt, Stopped), (DiesAt, Killed)])
def test_what_is_written_beside_training_is_one_step_and_no_mixture(tmp_path, monkeypatch, kind, end):
    Slow(monkeypatch, 0.05)
    model = parent(tmp_path / "parent", attention_dropout=0.1)
    step.run(model, CONFIG, context(tmp_path / "whole"))
    with pytest.raises(end):
        step.run(model, CONFIG, context(tmp_path / "cut", kind=kind))
    given = context(tmp_path / "cut")
    outcome = step.run(model, CONFIG, given)
    assert payload(tmp_path / "cut") == payload(tmp_path / "whole") and outcome.facts["resumed"] == 1
    if kind is StopsAt:
        assert given.reports[0][0] == 6 * CONFIG.batch_tokens, (
            "the last step is kept, not the last that was due"
        )


def test_a_full_disk_is_told_by_the_step_that_follows(tmp_path, monkeypatch):
    def full(state, stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    given = context(tmp_path / "result")
    with pytest.raises(OSError, match="No space left") as raised:
        step.run(parent(tmp_path / "parent"), CONFIG, given)
    assert raised.value.errno == errno.ENOSPC and len(given.reports) < 12


def test_without_memory_for_a_copy_training_waits_and_says_so(tmp_path, monkeypatch):
    slow, steps_meanwhile = Slow(monkeypatch, 0.0), []
    monkeypatch.setattr(background, "host_memory_left", lambda: 1000)

    class Counting(FakeContext):
        def progress(self, done, total, unit, **figures):
            steps_meanwhile.append(slow.writing.is_set())

    given = context(tmp_path / "result", kind=Counting)
    step.run(parent(tmp_path / "parent"), CONFIG, given)
    assert slow.num >= 11 and not any(steps_meanwhile)
    assert given.warnings == [
        "training waits while checkpoints are written: the host's memory is too small for a copy that could be "
        "written meanwhile"
    ]


def test_a_copy_keeps_what_is_shared_and_none_of_what_changes():
    weight = torch.arange(6.0)
    state = {"a": weight, "tied": weight, "part": weight[2:], "list": [{"x": 1}], "number": 3}
    copies = HostCopies("cpu")
    first = copies.of(state)
    weight.zero_()
    state["list"].append({"x": 2})
    assert first["a"].tolist() == [0, 1, 2, 3, 4, 5] and first["list"] == [{"x": 1}]
    assert first["tied"] is first["a"] and first["number"] == 3
    assert copies.of(state)["a"] is first["a"], "the same memory again"


def test_memory_is_counted_before_it_is_taken(monkeypatch):
    copies = HostCopies("cpu")
    state = {"weight": torch.zeros(1000)}
    monkeypatch.setattr(background, "host_memory_left", lambda: 0)
    assert copies.lacking(state) == 4000 + background.SPARE
    copies.of(state)
    assert copies.lacking(state) <= 0


def test_a_container_may_allow_less_than_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "LIMITS", tmp_path)
    whole = host_memory_left()
    for name, text in {"max": "3000", "current": "2500", "stat": "anon 100\ninactive_file 300"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert host_memory_left() == 800 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory_left() > 800


def test_a_checkpoint_under_way_is_due_again_when_it_is_whole(tmp_path, monkeypatch):
    Slow(monkeypatch, 0.2)
    checkpoints = Checkpoints(tmp_path, 0.0, HostCopies("cpu"))
    checkpoints.write(Numbered(1))
    assert not checkpoints.due and not checkpoints.exist
    checkpoints.settle()
    assert checkpoints.exist and checkpoints.write_seconds >= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [StopsAfter, DiesAt])
def test_a_team_too_trains_on_while_it_writes_and_goes_on_from_what_is_whole(tmp_path, monkeypatch, kind):
    slow, steps_meanwhile = Slow(monkeypatch, 0.1), []

    class Counting(FakeContext):
        def progress(self, done, total, unit, **figures):
            if slow.writing.is_set():
                steps_meanwhile.append(done)

    model = parent(tmp_path / "parent", attention_dropout=0.1)
    run_step(step, model, CONFIG, context(tmp_path / "whole", kind=Counting), launched=True)
    assert steps_meanwhile
    with pytest.raises((Stopped, Killed)):
        run_step(step, model, CONFIG, context(tmp_path / "cut", kind=kind), launched=True)
    given = context(tmp_path / "cut")
    outcome = run_step(step, model, CONFIG, given, launched=True)
    assert outcome.facts["resumed"] == 1 and payload(tmp_path / "cut") == payload(tmp_path / "whole")
    if kind is StopsAfter:
        assert given.reports[0][0] == 5 * CONFIG.batch_tokens
