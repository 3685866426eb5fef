"""What each process of a team holds. Its checkpoints and those of one alone: each takes up the other's work."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers.modeling_utils
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from compress.distill import step as distill
from compress.models.checkpoint import load_model
from compress.records import Artifact
from compress.train import checkpoint, distributed, numerics, sharded, step, team_memory
from compress.train.distributed import Team, load_at_leader, without_weights
from compress.train.lora import add_adapters
from compress.train.settings import Lora
from compress.train.sharding import Sharding
from tests.fakes import FakeContext, Stopped, StopsAfter
from tests.train.inputs import context, countable_ids, parent, tokens

CONFIG = step.Config(
    tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0, precision="fp32"
)


class StopsAtOnce(StopsAfter):
    """Killed before the first step is told of."""

    after = 1

    def progress(self, done, total, unit, **figures):
        raise Stopped


class StopsAfterOne(StopsAfter):
    """Asked to stop after the first step."""

    after = 1


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


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
            run(model, tmp_path / "result", launched, StopsAfter)
        left = {path.name for path in (tmp_path / "result.partial").iterdir()}
        assert ("checkpoint.pt" in left) != launched and any("sharded-" in name for name in left) == launched
    outcome, work = run(model, tmp_path / "result", order[2])
    assert work.reports[0][0] == 9 * CONFIG.batch_tokens, "it went on after eight steps"
    assert outcome.facts["resumed"] == 2 and outcome.facts["optimizer_steps"] == 12
    assert outcome.facts["learned_tokens"] == 12 * 4 * 15
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("result", "whole"))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("gone", ["rest.pt", "tensors"])
def test_killed_while_a_teams_checkpoint_is_deleted_work_goes_on(tmp_path, monkeypatch, gone):
    model = parent(tmp_path / "parent")
    run(model, tmp_path / "whole", False)
    with pytest.raises(Stopped):
        run(model, tmp_path / "result", True, StopsAfter)
    with monkeypatch.context() as patched:
        patched.setattr(sharded.shutil, "rmtree", lambda folder: killed_within(folder, gone))
        with pytest.raises(Stopped):  # alone, it drops the team's checkpoint when its own is written
            run(model, tmp_path / "result", False)
    with pytest.raises(Stopped):
        run(model, tmp_path / "result", True, StopsAtOnce)
    outcome, work = run(model, tmp_path / "result", False)
    assert work.reports[0][0] == 6 * CONFIG.batch_tokens and outcome.facts["resumed"] == 2
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
        update={
            "held_out": "held_out",
            "held_out_rows": 4,
            "stop_after": 1,
            "learning_rate": 1.0,
            "warmup": 0,
        }
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


DEEP = {"num_hidden_layers": 8}
"""So that one layer is little beside the whole."""


def num_held(module: nn.Module) -> int:
    """How many weights of a module this process has memory for."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    return sum(p.numel() for p in local if not p.is_meta)


class Weighed:
    """Sharding, with a look at what the process holds before it and whenever something is put in parts."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.whole = 0

    def shard(self, objective: nn.Module, device: str, sharding: Sharding) -> None:
        self.whole = sum(p.numel() for p in objective.parameters())
        self._objective = objective
        self.seen.append(num_held(objective))
        distributed.shard(objective, device, sharding)
        self.seen.append(num_held(objective))

    def fully_shard(self, *args, **kwargs):
        self.seen.append(num_held(self._objective))
        return FULLY_SHARD(*args, **kwargs)


FULLY_SHARD = distributed.fully_shard


def _no_file(*_, **__):
    raise AssertionError("only the leader reads weights")


def member(rank: int, folder: Path, inputs: dict[str, Artifact], config: distill.Config) -> None:
    """Be one of two processes that distill; leave word of what this one held."""
    torch.set_num_threads(1)
    weighed = Weighed()
    team_memory.shard, distributed.fully_shard = weighed.shard, weighed.fully_shard
    if rank > 0:
        transformers.modeling_utils.safe_open = _no_file
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    work = context(folder / f"{rank}", teacher=inputs["teacher"])
    work.partial = folder / "partial"
    work.partial.mkdir(exist_ok=True)
    distill.run(inputs["student"], config, work)
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps({"whole": weighed.whole, "seen": weighed.seen}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tied", "lora"),
    [("llama", False, None), ("qwen3", True, {"rank": 2}), ("qwen3_moe", False, None)],
    ids=["untied", "tied with lora", "experts"],
)
def test_only_the_leader_ever_holds_a_whole_model(family, tied, lora, tmp_path):
    made = {"tie_word_embeddings": tied, **DEEP}
    student = parent(tmp_path / "student", family, **made)
    teacher = parent(tmp_path / "teacher", family, dtype=torch.bfloat16, seed=1, **made)
    config = distill.Config(**CONFIG.model_dump(exclude={"tokens", "lora"}), tokens=16 * 4 * 3, lora=lora)
    tokens(tmp_path / "tokens")
    torch.multiprocessing.spawn(
        member, (tmp_path, {"student": student, "teacher": teacher}, config), nprocs=2
    )
    leader, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert leader["seen"][0] == leader["whole"] == other["whole"]
    assert other["seen"][0] == 0 and max(other["seen"]) < 0.7 * other["whole"]
    run_step(distill, student, config, context(tmp_path / "alone", teacher=teacher), False)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "alone"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("launched", [False, True])
def test_only_a_process_alone_keeps_freed_memory(launched, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(numerics, "freed_memory_kept", lambda: nullcontext(kept.append(True)))
    run(parent(tmp_path / "parent"), tmp_path / "result", launched)
    assert bool(kept) != launched


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_is_opened_with_its_weights_in_the_leader_alone(rank, tmp_path, monkeypatch):
    model = parent(tmp_path / "parent")
    monkeypatch.setattr(Team, "current", lambda: Team(rank, 2, is_launched=True))
    opened = load_at_leader(model.path, dtype=torch.float32)
    assert {p.is_meta for p in opened.parameters()} == {rank > 0}


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_without_weights_becomes_the_model_again_with_them(tied, tmp_path):
    model = load_model(parent(tmp_path / "parent", tie_word_embeddings=tied).path)
    adapters = add_adapters(model, Lora(rank=2), seed=0)
    copied, its_adapters = without_weights(model, adapters)
    assert num_held(copied) == 0 and num_held(model) > 0 and its_adapters.model is copied
    copied.load_state_dict(model.state_dict(), assign=True)
    copied.tie_weights()
    assert [(n, p.requires_grad) for n, p in copied.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]
    ids = torch.arange(8)[None]
    assert torch.equal(copied(ids).logits, model(ids).logits)
