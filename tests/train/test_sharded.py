"""Checkpoints of a team and of a process alone: each takes up the other's work."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from compress.distill import step as distill
from compress.train import checkpoint, sharded, step
from compress.train.distributed import Team
from tests.fakes import FakeContext, Stopped
from tests.train.inputs import context, countable_ids, parent, tokens

CONFIG = step.Config(
    tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0, precision="fp32"
)


class StopsAfterFour(FakeContext):
    """Asked to stop after four steps."""

    after = 4

    @property
    def stopping(self) -> bool:
        return len(self.reports) >= self.after

    @stopping.setter
    def stopping(self, value: bool) -> None:
        pass


class StopsAtOnce(StopsAfterFour):
    """Killed before the first step is told of."""

    after = 1

    def progress(self, done, total, unit, **figures):
        raise Stopped


class StopsAfterOne(StopsAfterFour):
    """Asked to stop after the first step."""

    after = 1


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    monkeypatch.setattr(sharded, "WORK_PER_WRITE", 0)


def run_step(module, model, config, work, launched):
    """Do a step alone, or as a team of one process, whose models are sharded all the same."""
    if not launched:
        return module.run(model, config, work)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert Team.current().is_launched
        return module.run(model, config, work)
    finally:
        dist.destroy_process_group()


def run(model, folder, launched, kind=FakeContext, config=CONFIG, **inputs):
    """Train as far as `kind` allows."""
    work = context(folder, kind=kind, **inputs)
    return run_step(step, model, config, work, launched), work


@pytest.mark.parametrize(
    "order", [(False, True, False), (True, False, True)], ids=["alone first", "team first"]
)
def test_a_team_and_a_process_alone_take_up_each_others_work(tmp_path, order):
    model = parent(tmp_path / "parent")
    run(model, tmp_path / "whole", False)
    for launched in order[:2]:
        with pytest.raises(Stopped):
            run(model, tmp_path / "result", launched, StopsAfterFour)
        left = {path.name for path in (tmp_path / "result.partial").iterdir()}
        assert ("checkpoint.pt" in left) != launched and any("sharded-" in name for name in left) == launched
    outcome, work = run(model, tmp_path / "result", order[2])
    assert work.reports[0][0] == 9 * CONFIG.batch_tokens, "it went on after eight steps"
    assert outcome.facts["resumed"] == 2 and outcome.facts["optimizer_steps"] == 12
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("result", "whole"))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("gone", ["rest.pt", "tensors"])
def test_killed_while_a_teams_checkpoint_is_deleted_work_goes_on(tmp_path, monkeypatch, gone):
    model = parent(tmp_path / "parent")
    run(model, tmp_path / "whole", False)
    with pytest.raises(Stopped):
        run(model, tmp_path / "result", True, StopsAfterFour)
    with monkeypatch.context() as patched:
        patched.setattr(sharded.shutil, "rmtree", lambda folder: killed_within(folder, gone))
        with pytest.raises(Stopped):  # alone, it drops the team's checkpoint when its own is written
            run(model, tmp_path / "result", False)
    with pytest.raises(Stopped):
        run(model, tmp_path / "result", True, StopsAtOnce)
    outcome, work = run(model, tmp_path / "result", False)
    assert work.reports[0][0] == 5 * CONFIG.batch_tokens and outcome.facts["resumed"] == 3
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("result", "whole"))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)


def killed_within(folder, gone):
    if folder.exists():
        path = folder / gone
        path.unlink() if path.is_file() else [each.unlink() for each in path.iterdir()]
        raise Stopped


def test_the_best_weights_so_far_are_taken_up_too(tmp_path):
    model = parent(tmp_path / "parent")
    config = CONFIG.model_copy(
        update={"held_out": "held_out", "held_out_rows": 4, "stop_after": 1, "learning_rate": 1.0}
    )
    held_out = {
        "held_out": tokens(tmp_path / "held_out", countable_ids(4)).model_copy(update={"key": "held out"})
    }
    whole, _ = run(model, tmp_path / "whole", False, config=config, **held_out)
    assert whole.facts["stopped_early"] and whole.facts["kept_tokens"] == 0
    for launched in (False, True):
        with pytest.raises(Stopped):
            run(model, tmp_path / f"{launched}", launched, StopsAfterOne, config, **held_out)
        outcome, _ = run(model, tmp_path / f"{launched}", not launched, config=config, **held_out)
        assert outcome.facts["stopped_early"] and outcome.facts["resumed"] == 1
        ours, theirs = (
            load_file(tmp_path / f"{launched}" / "model.safetensors"),
            load_file(model.path / "model.safetensors"),
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_teacher_in_eight_bits_stays_whole(tmp_path):
    model, teacher = parent(tmp_path / "parent"), parent(tmp_path / "teacher", seed=1)
    config = distill.Config(
        **CONFIG.model_dump(exclude={"tokens"}), tokens=16 * 4 * 2, teacher_precision="int8"
    )
    results = []
    for launched in (False, True):
        work = context(tmp_path / f"{launched}", teacher=teacher)
        results.append(run_step(distill, model, config, work, launched).facts["loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-6)
