"""A step of distillation on the card: right, the same again, and within its account."""

import pytest
import torch

from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.train import step
from compress.train.batches import Batches
from compress.train.loop import place
from compress.train.memory import recompute_activations
from compress.train.numerics import Numerics, applied
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.training import Training
from tests.fakes import Stopped, StopsAfter
from tests.models.tiny import tiny_model
from tests.train.inputs import context, parent, payload

SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "num_hidden_layers": 3, "vocab_size": 1000,
}  # fmt: skip

pytestmark = pytest.mark.gpu


class Packed:
    """Rows of 256 tokens in documents of 96."""

    num_sequences, sequence_length = 16, 256

    def learning_batch(self, indices):
        from compress.data.batch import Batch

        places = torch.arange(self.num_sequences * 256).view(-1, 256)[indices]
        ids = torch.randint(1000, places.shape, generator=torch.Generator().manual_seed(1))
        starts = places % 96 == 0
        column = torch.arange(256).expand_as(places)
        first = torch.where(starts, column, 0).cummax(dim=1).values
        return Batch(ids, column - first, rows=torch.tensor(indices))


def training(attention="packed", recompute=False, **settings):
    student = tiny_model("llama", seed=1, **SHAPE).float()
    teacher = tiny_model("llama", seed=2, **SHAPE).bfloat16()
    numerics = Numerics(
        device="cuda", precision="bf16", num_threads=1, micro_batch=2, attention=attention,
        checkpoint_activations=recompute,
    )  # fmt: skip
    objective = Distillation(student, teacher, Recipe(named("forward_kl")), 1000)
    place(objective, numerics)
    recompute_activations(student, recompute)
    asked = TrainingSettings(tokens=256 * 4 * 50, batch_tokens=256 * 4, learning_rate=1e-3, **settings)
    schedule = Schedule.of(asked, 256)
    batches = Batches(Packed(), schedule.batch_sequences, seed=0)
    return Training(objective, student.train(), batches, asked, schedule, numerics), numerics


def gradients(found):
    found.compute_gradient()
    return {n: p.grad.clone() for n, p in found.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_recomputed_activations_give_the_gradients_of_kept_ones(attention):
    both = []
    for recompute in (False, True):
        found, numerics = training(attention, recompute)
        with applied(numerics):
            both.append(gradients(found))
    kept, again = both
    assert kept.keys() == again.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_claimed_to_be_exact_comes_out_alike(recompute):
    found, numerics = training(recompute=recompute)
    with applied(numerics):
        first, second = gradients(found), gradients(found)
    if found.numerics.facts()["bit_exact"]:
        assert all(torch.equal(grad, second[name]) for name, grad in first.items())
    else:
        assert found.numerics.sums_vary


def test_documents_read_apart_give_the_gradients_of_a_dense_mask():
    both = []
    for attention in ("packed", "sdpa"):
        found, numerics = training(attention)
        with applied(numerics):
            both.append(gradients(found))
    for name, grad in both[0].items():
        error = (grad - both[1][name]).norm() / both[1][name].norm().clamp_min(1e-12)
        assert float(error) < 0.02, name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adamw_bf16"])
def test_every_optimizer_learns_and_keeps_what_it_says(optimizer):
    found, numerics = training(optimizer=optimizer)
    with applied(numerics):
        losses = []
        for _ in range(12):
            loss, _ = found.compute_gradient()
            found.update(loss)
            losses.append(loss)
    assert losses[-1] < losses[0]


def test_no_step_waits_for_the_card_but_for_its_loss_and_length():
    found, numerics = training()
    with applied(numerics):
        found.compute_gradient()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning) as told:
                found.compute_gradient()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = [each for each in told if "synchroniz" in str(each.message)]
    # Copies of both micro-batches, the loss and the gradient's length.
    assert len(syncs) <= 2 * 8 + 2, [str(each.filename) + str(each.lineno) for each in syncs]


class StopsSoon(StopsAfter):
    after = 4


def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path):
    config = step.Config(tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0)
    model = parent(tmp_path / "parent")
    whole = step.run(model, config, context(tmp_path / "whole"))
    with pytest.raises(Stopped):
        step.run(model, config, context(tmp_path / "again", kind=StopsSoon))
    step.run(model, config, context(tmp_path / "again"))
    if whole.facts["bit_exact"]:
        assert payload(tmp_path / "again") == payload(tmp_path / "whole")
