"""Asked to stop in the middle of a step or of an evaluation, a training keeps every whole step."""

import pytest
import torch

from compress.train import loop, step
from compress.train.objective import NextToken
from compress.train.stopping import ASK_SECONDS, Stopping
from compress.train.tasks import WatchedTasks
from tests.fakes import FakeContext, Stopped
from tests.train.inputs import context, countable_ids, parent, payload, tokens

CONFIG = step.Config(
    tokens=16 * 4 * 8,
    batch_tokens=16 * 4,
    micro_batch=1,
    learning_rate=3e-3,
    checkpoint_seconds=1000,
    precision="fp32",
)


class Told(FakeContext):
    """Asked to stop when told so."""

    told = False

    @property
    def stopping(self) -> bool:
        return type(self).told

    @stopping.setter
    def stopping(self, value: bool) -> None:
        pass


def stopped_at(call: int):
    """An objective during whose so-manieth part of a batch the run is stopped, and a context that is."""
    kind = type("ToldThen", (Told,), {})

    class StopsIn(NextToken):
        num_calls = 0

        def forward(self, batch):
            type(self).num_calls += 1
            if self.num_calls == call:
                kind.told = True
            return super().forward(batch)

    return StopsIn, kind


@pytest.fixture
def model(tmp_path):
    return parent(tmp_path / "parent", attention_dropout=0.1)


@pytest.mark.parametrize(("call", "whole_steps"), [(4 * 3 + 2, 3), (4 * 3, 3), (4 * 3 + 1, 3)])
def test_stopped_within_a_step_it_goes_on_from_the_last_whole_one(
    model, tmp_path, monkeypatch, call, whole_steps
):
    step.run(model, CONFIG, context(tmp_path / "whole"))
    objective, kind = stopped_at(call)
    with monkeypatch.context() as patched:
        patched.setattr("compress.train.objective.NextToken", objective)
        with pytest.raises(Stopped):
            step.run(model, CONFIG, context(tmp_path / "cut", kind=kind))
    assert objective.num_calls == call, "no part of the batch was begun after it was asked to stop"
    given = context(tmp_path / "cut")
    outcome = step.run(model, CONFIG, given)
    assert given.reports[0][0] == (whole_steps + 1) * CONFIG.batch_tokens
    assert payload(tmp_path / "cut") == payload(tmp_path / "whole")
    assert outcome.facts["resumed"] == 1 and outcome.facts["bit_exact"]


def test_nothing_is_written_where_nothing_is_to_be_kept(model, tmp_path, monkeypatch):
    written = []
    write = loop.TeamCheckpoints.write
    monkeypatch.setattr(
        loop.TeamCheckpoints, "write", lambda *args: (written.append(args[1].step), write(*args))
    )
    step.run(model, CONFIG, context(tmp_path / "whole"))
    assert written == [], "not before the first step, and not within a thousand seconds"
    for call, expected in ((2, []), (4 * 2 + 2, [2])):
        objective, kind = stopped_at(call)
        with monkeypatch.context() as patched:
            patched.setattr("compress.train.objective.NextToken", objective)
            with pytest.raises(Stopped):
                step.run(model, CONFIG, context(tmp_path / "cut", kind=kind))
        assert written == expected
    objective, kind = stopped_at(2)  # in the first step after it was taken up
    with monkeypatch.context() as patched:
        patched.setattr("compress.train.objective.NextToken", objective)
        with pytest.raises(Stopped):
            step.run(model, CONFIG, context(tmp_path / "cut", kind=kind))
    assert written == [2], "not again what is there"


def test_stopped_while_tasks_are_answered_it_keeps_the_step_before(model, tmp_path, monkeypatch):
    watched = CONFIG.model_copy(
        update={"held_out": "heldout", "held_out_rows": 2, "tasks": ("world_sums",), "task_samples": 2}
    )
    watched = watched.model_copy(update={"evaluate_every": 0.25})
    rows = tokens(tmp_path / "heldout", countable_ids(num=4)).model_copy(update={"key": "heldout"})
    whole = step.run(model, watched, context(tmp_path / "whole", held_out=rows))
    kind, answers, looks = type("ToldThen", (Told,), {}), WatchedTasks.answers, []

    def stopped_in_the_third(self, *args, **kwargs):
        looks.append(True)
        kind.told = len(looks) == 3
        return answers(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(WatchedTasks, "answers", stopped_in_the_third)
        with pytest.raises(Stopped):
            step.run(model, watched, context(tmp_path / "cut", kind=kind, held_out=rows))
    given = context(tmp_path / "cut", held_out=rows)
    outcome = step.run(model, watched, given)
    assert given.reports[0][0] == 5 * CONFIG.batch_tokens
    assert payload(tmp_path / "cut") == payload(tmp_path / "whole")
    seen = [[(p["tokens"], p["held_out"], p["tasks"]) for p in o.facts["curve"]] for o in (whole, outcome)]
    assert seen[0] == seen[1]


def test_the_run_is_told_how_long_a_stop_may_take(model, tmp_path, monkeypatch):
    given = context(tmp_path / "result")
    monkeypatch.setattr(loop.TeamCheckpoints, "write_seconds", property(lambda _: 100.0))
    step.run(model, CONFIG, given)
    assert given.stop_seconds == 310.0


class Pair:
    """A team of two: what the other one says is prepared."""

    is_launched, size, leads = True, 2, True

    def __init__(self, others) -> None:
        self.others, self.asked = iter(others), 0

    def sums(self, *values: float) -> list[float]:
        self.asked += 1
        return [a + b for a, b in zip(values, next(self.others), strict=True)]


class Taken:
    """A training whose last step had eight parts in each process and took four seconds."""

    batch_sequences, last_seconds = 32, 4.0

    class numerics:  # noqa: N801
        micro_batch = 2


def test_a_team_asks_now_and_then_and_stops_when_any_process_is_told(tmp_path):
    team = Pair([(0.0,), (0.0, 0.0), (1.0,)])
    stopping = Stopping(FakeContext(tmp_path / "result"), team)
    assert not stopping.asked_within_step() and team.asked == 1, "nothing is known of the first step's parts"
    assert not stopping.asked_after_step(Taken)
    every = round(ASK_SECONDS * 8 / 4)
    assert [stopping.asked_within_step() for _ in range(every)] == [False] * (every - 1) + [True]
    assert team.asked == 3


def test_memory_that_runs_out_while_evaluating_halves_what_is_evaluated_at_once(tmp_path, model, monkeypatch):
    class Room(NextToken):
        def forward(self, batch):
            if not torch.is_grad_enabled() and len(batch) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    monkeypatch.setattr("compress.train.objective.NextToken", Room)
    rows = tokens(tmp_path / "heldout", countable_ids(num=4)).model_copy(update={"key": "heldout"})
    config = CONFIG.model_copy(update={"held_out": "heldout", "micro_batch": 4})
    given = context(tmp_path / "result", held_out=rows)
    outcome = step.run(model, config, given)
    assert outcome.facts["micro_batch"] == 4 and not outcome.facts["bit_exact"]
    assert [warning.split(".")[0] for warning in given.warnings] == [
        f"at step 1 memory ran out: evaluation's batches became 1/{size} of their size" for size in (2, 4)
    ]
    assert outcome.facts["curve"][-1]["held_out"]["loss"] > 0
