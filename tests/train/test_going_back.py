"""What happens when a gradient is not finite: within the memory there is, and alike however often work is resumed."""

import weakref

import pytest
import torch

from compress.train import checkpoint, step
from compress.train.objective import NextToken
from tests.train.inputs import context, parent, payload
from tests.train.test_loop import train
from tests.train.test_resume import DiesAt, Killed

CONFIG = step.Config(
    tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0, precision="fp32"
)


class Spoiled(NextToken):
    """A batch whose loss is no number, whenever it is read."""

    first = 0

    def forward(self, batch):
        total, num_tokens = super().forward(batch)
        spoiled = batch.ids[0, 0] == self.spoiled
        return total * (float("nan") if spoiled else 1.0), num_tokens


def spoiled_by(first: int):
    return type("SpoiledBy", (Spoiled,), {"spoiled": first})


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """A training one of whose batches is spoiled: the first id of the first row of the sixth."""
    model, firsts = parent(tmp_path / "parent", attention_dropout=0.1), []

    class Noting(NextToken):
        def forward(self, batch):
            firsts.append(int(batch.ids[0, 0]))
            return super().forward(batch)

    monkeypatch.setattr("compress.train.objective.NextToken", Noting)
    step.run(model, CONFIG, context(tmp_path / "unspoiled"))
    assert firsts[5] not in firsts[:5], (
        "another first row, so that the sixth batch is the first that is spoiled"
    )
    monkeypatch.setattr("compress.train.objective.NextToken", spoiled_by(firsts[5]))
    return model


@pytest.mark.parametrize("seconds", [0, 1000], ids=["with checkpoints", "without"])
def test_a_batch_that_is_spoiled_twice_is_skipped(spoiled, tmp_path, seconds):
    given = context(tmp_path / "result")
    outcome = step.run(spoiled, CONFIG.model_copy(update={"checkpoint_seconds": seconds}), given)
    assert 6 in outcome.facts["skipped_batches"] and outcome.facts["optimizer_steps"] == 12
    told = "went back to the last checkpoint once" if seconds == 0 else "took the step once more"
    assert told in given.warnings[0] and given.warnings[1].endswith("nothing was learned from this batch")
    skipped = len(outcome.facts["skipped_batches"])
    assert outcome.facts["learned_tokens"] == (12 - skipped) * 4 * 15
    assert outcome.facts["bit_exact"]


@pytest.mark.parametrize("after", [4, 5, 6])
def test_killed_before_or_after_a_batch_was_skipped_it_ends_in_the_same_bytes(
    spoiled, tmp_path, monkeypatch, after
):
    whole = step.run(spoiled, CONFIG, context(tmp_path / "whole"))
    monkeypatch.setattr(DiesAt, "after", after)
    with pytest.raises(Killed):
        step.run(spoiled, CONFIG, context(tmp_path / "cut", kind=DiesAt))
    resumed = step.run(spoiled, CONFIG, context(tmp_path / "cut"))
    assert payload(tmp_path / "cut") == payload(tmp_path / "whole")
    assert resumed.facts["skipped_batches"] == whole.facts["skipped_batches"]


def test_what_was_before_is_gone_when_the_checkpoint_is_read(tmp_path, monkeypatch):
    alive = []

    class Watching(NextToken):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 6:
                [optimizer] = optimizers
                kept = [moment for state in optimizer.state.values() for moment in state.values()]
                alive.extend(map(weakref.ref, kept))
            total, num_tokens = super().forward(batch)
            return total * (float("nan") if self.calls == 6 else 1.0), num_tokens

    optimizers = []
    made, become = torch.optim.Optimizer.__init__, torch.optim.Optimizer.__setstate__

    def note(self, *args, **kwargs):
        optimizers.append(self)
        made(self, *args, **kwargs)

    def look(self, state):
        assert alive and not any(moment() is not None for moment in alive), "old moments beside the new ones"
        assert all(p.grad is None for group in self.param_groups for p in group["params"])
        looked.append(True)
        become(self, state)

    looked = []
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", note)
    monkeypatch.setattr(torch.optim.Optimizer, "__setstate__", look)
    _, facts, given = train(tmp_path, Watching, checkpoint_seconds=0, precision="fp32")
    assert looked == [True] and len(given.warnings) == 1 and "skipped_batches" not in facts
