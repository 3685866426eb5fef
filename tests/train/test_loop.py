import pytest
import torch
from torch import nn

from compress.data.batch import Batch
from compress.errors import StepFailed
from compress.records import CurvePoint
from compress.train import checkpoint, training
from compress.train.batches import Batches
from compress.train.loop import fit
from compress.train.numerics import Numerics
from compress.train.objective import NextToken
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.training import Training
from tests.fakes import FakeContext
from tests.models.tiny import tiny_model
from tests.train.inputs import SMALL, InMemory, countable_ids, no_account

DATA = InMemory(countable_ids())


class FailsAt(NextToken):
    """A loss that is not a number on some calls."""

    def __init__(self, student, calls: set[int]) -> None:
        super().__init__(student)
        self.calls, self.num_calls = calls, 0

    def forward(self, ids_BT):
        self.num_calls += 1
        total, num_tokens = super().forward(ids_BT)
        return total * (float("nan") if self.num_calls in self.calls else 1.0), num_tokens


class Answers(InMemory):
    """Rows of which only some hold anything to be learned."""

    def __init__(self, ids: torch.Tensor, learned_rows: set[int]) -> None:
        super().__init__(ids)
        self.learned_rows = learned_rows

    def learning_batch(self, indices) -> Batch:
        batch = super().learning_batch(indices)
        learned_B = torch.tensor([index in self.learned_rows for index in indices])
        return Batch(batch.ids, learned=learned_B[:, None].expand_as(batch.ids))


def train(tmp_path, objective_of=NextToken, data=DATA, **settings):
    settings = TrainingSettings(
        **{"tokens": 16 * 4 * 12, "batch_tokens": 16 * 4, "learning_rate": 3e-3, **settings}
    )
    student = tiny_model("llama", **SMALL)
    context = FakeContext(tmp_path / "result", seed=7)
    objective: nn.Module = objective_of(student)
    return student, fit(objective, student, data, settings, context, no_account), context


def gradients(micro_batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    settings = TrainingSettings(tokens=16 * 7, batch_tokens=16 * 7)
    schedule = Schedule.of(settings, sequence_length=16)
    student = tiny_model("llama", **SMALL).to(dtype)
    numerics = Numerics(
        device="cpu", precision="fp32", num_threads=1, micro_batch=micro_batch, attention="sdpa"
    )
    batches = Batches(DATA, schedule.batch_sequences, seed=0)
    Training(NextToken(student), student, batches, settings, schedule, numerics).compute_gradient()
    return [p.grad for p in student.parameters()]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-15)], ids=str)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro_batch, dtype, error):
    for part, whole in zip(gradients(micro_batch, dtype), gradients(7, dtype), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=error)


class OnlyInAnyOrder(NextToken):
    """Its gradient is refused, as on a GPU, where only deterministic algorithms are allowed."""

    def forward(self, batch):
        loss, count = super().forward(batch)
        loss.register_hook(lambda _: torch._prims_common.alert_not_deterministic("scan_backward"))
        return loss, count


def test_an_operation_without_a_deterministic_algorithm_ends_the_claim_of_exactness(tmp_path, monkeypatch):
    monkeypatch.setattr(Numerics, "sums_in_one_order", property(lambda numerics: not numerics.sums_vary))
    _, facts, _ = train(tmp_path / "any order", OnlyInAnyOrder)
    _, exact, _ = train(tmp_path / "one order")
    assert exact["bit_exact"] and exact["loss"] == facts["loss"] and not facts["bit_exact"]
    assert facts["bit_exact_ended_by"] == "on this GPU scan_backward sums in any order"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_training_learns_and_tells_how_it_went(tmp_path, precision):
    student, facts, context = train(tmp_path, precision=precision, tokens=16 * 4 * 40)
    points = [CurvePoint(**point) for point in facts["curve"]]
    assert points[-1].loss < 0.6 * points[0].loss and facts["loss"] == points[-1].loss
    assert points[-1].tokens == facts["tokens"] == 16 * 4 * 40
    done, total, unit, figures = context.reports[-1]
    assert (done, total, unit) == (16 * 4 * 40, 16 * 4 * 40, "tokens")
    assert set(figures) == {"loss", "tokens_per_second"}
    assert not student.training and all(p.grad is None for p in student.parameters())


def test_a_long_curve_is_thinned_to_equal_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CURVE_POINTS", 5)
    _, facts, _ = train(tmp_path, tokens=16 * 11, batch_tokens=16)
    assert [point["tokens"] // 16 for point in facts["curve"]] == [3, 6, 9, 11]


def test_one_bad_loss_is_undone_and_leaves_no_trace(tmp_path):
    clean, _, _ = train(tmp_path / "clean")
    mended, _, context = train(
        tmp_path / "mended", lambda student: FailsAt(student, {6}), checkpoint_seconds=1000
    )
    assert len(context.warnings) == 1 and "at step 6 the loss was nan" in context.warnings[0]
    for ours, theirs in zip(mended.parameters(), clean.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class BadGradient(NextToken):
    """A loss that is a number and whose gradient is none, from some call on."""

    def __init__(self, student, since: int, until: int = 10**6) -> None:
        super().__init__(student)
        self.calls, self.num_calls = range(since, until), 0

    def forward(self, batch):
        self.num_calls += 1
        total, num_tokens = super().forward(batch)
        if self.num_calls in self.calls:
            total.register_hook(lambda slope: slope * float("nan"))
        return total, num_tokens


def test_a_gradient_that_is_no_number_is_undone_once_and_fails_when_it_stays_so(tmp_path):
    clean, _, _ = train(tmp_path / "clean", checkpoint_seconds=1000)
    mended, _, context = train(
        tmp_path / "mended", lambda student: BadGradient(student, 6, 7), checkpoint_seconds=1000
    )
    assert len(context.warnings) == 1 and "the gradient's length nan" in context.warnings[0]
    for ours, theirs in zip(mended.parameters(), clean.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    seen = r"diverged: at step \d+ the loss was \d+\.\d+ and the gradient's length nan, and 3 steps in a row"
    with pytest.raises(StepFailed, match=seen):
        train(tmp_path / "failed", lambda student: BadGradient(student, 6), checkpoint_seconds=1000)


@pytest.mark.parametrize("seconds", [0, 1000], ids=["with checkpoints", "without"])
def test_bad_losses_in_a_row_fail_and_say_what_was_seen(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    with pytest.raises(StepFailed, match=r"diverged: at step 4 the loss was nan .* lower `learning_rate`"):
        train(tmp_path, lambda student: FailsAt(student, {*range(2, 6)}), checkpoint_seconds=seconds)


def test_a_step_without_anything_to_learn_is_passed_over(tmp_path):
    ids_BT = countable_ids(num=4)
    half = Answers(ids_BT, learned_rows={0, 3})
    _, facts, context = train(tmp_path, data=half, tokens=16 * 8, batch_tokens=16)
    assert facts["optimizer_steps"] == 8 and facts["tokens"] == 16 * 8
    assert len(context.reports) == 8 and len(facts["curve"]) == 4
    assert all(point["loss"] > 0 for point in facts["curve"])


def test_data_without_anything_to_learn_is_refused(tmp_path):
    with pytest.raises(StepFailed, match="no token was to be learned"):
        train(tmp_path, data=Answers(countable_ids(), learned_rows=set()))
