"""Moments in 8 bits or bf16: that they learn what AdamW learns, and take up work to the bit."""

import pytest
import torch
from pydantic import ValidationError

from compress.train import checkpoint, loop, step
from compress.train.launch import Launch
from compress.train.moments_bf16 import AdamWBf16
from compress.train.optimizer import adamw
from compress.train.settings import Lora, TrainingSettings
from tests.fakes import FakeContext, Stopped, StopsAfter
from tests.models.tiny import tiny_model
from tests.train.inputs import context, parent, payload
from tests.train.test_loop import train
from tests.train.test_resume import CONFIG, DiesAt, Killed
from tests.train.test_sharded import CONFIG as SHARED_CONFIG
from tests.train.test_sharded import run

SMALLER = ["adamw_8bit", "adamw_bf16"]
WIDE = {"hidden_size": 96, "intermediate_size": 128}
"""Matrices of more than 4,096 values, which bitsandbytes keeps in 8 bits."""


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


def settings(optimizer: str, **changes) -> TrainingSettings:
    return TrainingSettings(tokens=1, optimizer=optimizer, learning_rate=1e-2, **changes)


def steps(optimizer: str, num: int) -> list[torch.Tensor]:
    """The weights of a small model after steps along gradients that are drawn anew."""
    model = tiny_model("llama", **WIDE)
    moved = adamw(model, settings(optimizer))
    draw = torch.Generator().manual_seed(1)
    for _ in range(num):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        moved.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("optimizer", SMALLER)
def test_the_first_step_is_adamws_own(optimizer):
    """Whatever is kept afterwards: what the step itself computes is not rounded."""
    for ours, theirs in zip(steps(optimizer, 1), steps("adamw", 1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 if optimizer == "adamw_bf16" else 5e-3)


@pytest.mark.parametrize(("optimizer", "most"), [("adamw_8bit", 0.12), ("adamw_bf16", 0.03)])
def test_many_steps_go_where_adamw_goes(optimizer, most):
    start = tiny_model("llama", **WIDE).parameters()
    for ours, theirs, before in zip(steps(optimizer, 20), steps("adamw", 20), start, strict=True):
        moved = torch.linalg.vector_norm(theirs - before)
        assert torch.linalg.vector_norm(ours - theirs) < most * moved


def test_moments_in_bf16_fall_when_gradients_do():
    """What rounding could prevent: a mean square that stays where one large gradient has put it."""
    weight = torch.nn.Parameter(torch.zeros(8))
    moved = AdamWBf16([{"params": [weight]}], betas=(0.98, 0.98))
    weight.grad = torch.full((8,), 100.0)
    moved.step()
    weight.grad = torch.full((8,), 1e-3)
    for _ in range(400):
        moved.step()
    expected = 200 * 0.98**400  # (1 − β) · 100² after 400 steps, as AdamW in fp32 has it
    torch.testing.assert_close(
        moved.state[weight]["exp_avg_sq"].float(), torch.full((8,), expected), rtol=0.3, atol=0
    )


def moments(optimizer: str) -> dict[str, tuple[set[torch.dtype], float]]:
    """The dtypes of every parameter's moments, and the bytes of its state for each of its values."""
    model = tiny_model("llama", **WIDE)
    moved = adamw(model, settings(optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    moved.step()
    found = {}
    for name, parameter in model.named_parameters():
        kept = {k: v for k, v in moved.state[parameter].items() if torch.is_tensor(v) and "qmap" not in k}
        large = [v for k, v in kept.items() if v.shape == parameter.shape]
        found[name] = ({v.dtype for v in large}, sum(v.nbytes for v in kept.values()) / parameter.numel())
    return found


def test_8_bit_moments_are_of_large_matrices_and_not_of_embeddings():
    found = moments("adamw_8bit")
    dtypes, num_bytes = found["model.layers.0.mlp.up_proj.weight"]
    assert dtypes == {torch.uint8} and num_bytes == pytest.approx(2 + 8 / 256, rel=0.01)
    assert found["lm_head.weight"][0] == {torch.uint8}
    assert found["model.embed_tokens.weight"] == ({torch.float32}, 8)
    assert found["model.norm.weight"][0] == {torch.float32}


def test_bf16_moments_are_all_in_bf16():
    dtypes, num_bytes = moments("adamw_bf16")["model.embed_tokens.weight"]
    assert dtypes == {torch.bfloat16} and num_bytes == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize("lora", [None, Lora(rank=32)], ids=["all", "lora"])
@pytest.mark.parametrize("optimizer", SMALLER)
def test_killed_and_resumed_work_ends_in_the_same_bytes(tmp_path, optimizer, lora):
    model = parent(tmp_path / "parent", **WIDE)
    config = CONFIG.model_copy(update={"optimizer": optimizer, "lora": lora})
    step.run(model, config, context(tmp_path / "whole"))
    with pytest.raises(Killed):
        step.run(model, config, context(tmp_path / "result", kind=DiesAt))
    outcome = step.run(model, config, context(tmp_path / "result"))
    assert outcome.facts["resumed"] == 1
    assert payload(tmp_path / "result") == payload(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", SMALLER)
def test_a_return_to_the_last_checkpoint_takes_the_moments_back(tmp_path, monkeypatch, optimizer):
    """The step that fails is lost; the ones after it are those of work that never failed."""
    student, _, _ = train(tmp_path / "whole", optimizer=optimizer, checkpoint_seconds=0)
    failed = []
    compute = loop.Training.compute_gradient

    def fails_once(self, asked_to_stop):
        found = compute(self, asked_to_stop)
        if self.step == 3 and not failed:
            failed.append(True)
            self.optimizer.step()  # moments that must not stay
            return float("nan"), 1.0
        return found

    monkeypatch.setattr(loop.Training, "compute_gradient", fails_once)
    again, _, given = train(tmp_path / "again", optimizer=optimizer, checkpoint_seconds=0)
    assert failed and any("went back" in warning for warning in given.warnings)
    for ours, theirs in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", [(False, True, False), (True, False, True)], ids=["alone", "team"])
def test_a_team_and_a_process_alone_take_up_each_others_bf16_moments(tmp_path, order):
    model = parent(tmp_path / "parent")
    config = SHARED_CONFIG.model_copy(update={"optimizer": "adamw_bf16"})
    run(model, tmp_path / "whole", False, config=config)
    for launched in order[:2]:
        with pytest.raises(Stopped):
            run(model, tmp_path / "result", launched, StopsAfter, config=config)
    outcome, _ = run(model, tmp_path / "result", order[2], FakeContext, config=config)
    assert outcome.facts["resumed"] == 2
    assert payload(tmp_path / "result") == payload(tmp_path / "whole")


def test_what_an_optimizer_cannot_do_is_refused():
    with pytest.raises(ValidationError, match=r"adamw_8bit` is for one process.*adamw_bf16"):
        settings("adamw_8bit", launch=Launch(processes=2))
    settings("adamw_bf16", launch=Launch(processes=2))
    with pytest.raises(ValidationError, match=r"cannot follow betas above 0\.98, found \[0\.9, 0\.999\]"):
        settings("adamw_bf16", betas=(0.9, 0.999))
    settings("adamw_8bit", betas=(0.9, 0.999))
