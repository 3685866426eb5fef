"""How a team divides its models: what is gathered and summed how often, and that it computes the same."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.models.layout import spec_from_config
from compress.train import step
from compress.train.distributed import Team, load_at_leader, reshard, shard, summed_as
from compress.train.layers import layers_of
from compress.train.lora import add_adapters
from compress.train.memory import recompute_activations
from compress.train.memory_account import Conditions, Teaching, account, outside_layers
from compress.train.settings import Lora, TrainingSettings
from compress.train.sharding import Sharding, candidates, roomiest
from tests.fakes import Stopped, StopsAfter
from tests.models.tiny import tiny_config
from tests.train.inputs import InMemory, context, countable_ids, parent

PLAIN = Sharding()
BF16 = Sharding(gathers_bf16=True)
ONCE = replace(BF16, reduces_once=True)
WHOLE = replace(BF16, whole_teacher=True)
REPLICAS = replace(BF16, num_replicas=2)
MICRO_BATCHES = 3
LAYERS = 2


class Traffic(TorchDispatchMode):
    """What processes send each other: calls and bytes received, by the collective's name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            self.calls[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors_in(args[0]))
        return func(*args, **(kwargs or {}))


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value for tensor in tensors_in(each)] if isinstance(value, list) else []


@contextmanager
def kept_matrices(shapes):
    """Yield the bf16 tensors of such shapes that are kept for a backward pass inside this block."""
    kept = []

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and {tensor.shape, tensor.shape[::-1]} & shapes:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def build(folder: Path, lora: bool) -> Distillation:
    student = load_at_leader(folder / "student", dtype=torch.float32)
    if lora:
        add_adapters(student, Lora(rank=2), seed=0)
    teacher = load_at_leader(folder / "teacher", dtype=torch.bfloat16)
    return Distillation(student, teacher, Recipe(named("forward_kl")), 259)


def measured(folder: Path, sharding: Sharding, *, bf16: bool, recompute: bool = False, lora: bool = False):
    """Return what one step of several micro-batches sent, and its gradients."""
    objective = build(folder, lora)
    student = objective.student.train()
    shapes = {p.shape for layer in layers_of(student) for p in layer.parameters() if p.ndim == 2}
    shard(objective, "cpu", sharding)
    recompute_activations(student, recompute)
    if not lora:
        assert all(isinstance(p, DTensor) for p in student.parameters()), "all of the student is divided"
    batches = [
        InMemory(countable_ids()).learning_batch(range(3 * i, 3 * i + 3)) for i in range(MICRO_BATCHES)
    ]
    batches = [batch.rows_at([dist.get_rank() % 3, 2, 0]) for batch in batches]
    total, alive = 0.0, 0
    with Traffic() as traffic:
        for batch in summed_as(sharding, objective, batches):
            with kept_matrices(shapes) as kept, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss, _ = objective(batch)
            alive = len({t.untyped_storage().data_ptr() for t in kept if t.untyped_storage().nbytes()})
            del kept
            loss.backward()
            total += float(loss.detach())
    grads = {name: p.grad.full_tensor() for name, p in student.named_parameters() if p.grad is not None}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        held_out = {name: float(value) for name, value in objective.held_out(batches[0])[0].items()}
    reshard(objective)
    assert all(isinstance(p, DTensor) for p in student.parameters() if p.requires_grad)
    local = sum(p.to_local().numel() for p in student.parameters() if isinstance(p, DTensor))
    return {
        "calls": dict(traffic.calls),
        "bytes": dict(traffic.bytes),
        "alive": alive,
        "loss": total,
        "held_out": held_out,
        "local": local,
        "grads": grads,
    }


def member(rank: int, folder: Path, size: int, ways: dict) -> None:
    """Be one of the processes; leave what this one measured of each way."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size
    )
    found = {name: measured(folder, sharding, **more) for name, (sharding, more) in ways.items()}
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


def of_team(folder: Path, size: int, ways: dict, family: str = "qwen3", **made):
    made = {"num_hidden_layers": LAYERS, **made}
    parent(folder / "student", family, **made)
    parent(folder / "teacher", family, dtype=torch.bfloat16, seed=1, **made)
    torch.multiprocessing.spawn(member, (folder, size, ways), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes that train a Qwen3 with tied embeddings, biases and norms in attention."""
    ways = {
        "autocast": (PLAIN, {"bf16": True}),
        "bf16": (BF16, {"bf16": True}),
        "recomputed": (BF16, {"bf16": True, "recompute": True}),
        "once": (ONCE, {"bf16": True}),
        "whole": (WHOLE, {"bf16": True}),
        "lora": (BF16, {"bf16": True, "lora": True}),
        "lora autocast": (PLAIN, {"bf16": True, "lora": True}),
        "fp32": (PLAIN, {"bf16": False}),
        "fp32 once": (replace(PLAIN, reduces_once=True), {"bf16": False}),
    }
    changes = {"tie_word_embeddings": True, "attention_bias": True}
    return of_team(tmp_path_factory.mktemp("pair"), 2, ways, **changes)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("way", "plain"),
    [("bf16", "autocast"), ("recomputed", "autocast"), ("whole", "autocast"), ("lora", "lora autocast")],
)
def test_gathered_in_bf16_a_student_learns_to_the_bit_what_autocast_taught_it(pair, way, plain):
    ours, theirs = pair[0][way], pair[0][plain]
    assert ours["loss"] == theirs["loss"] and ours["held_out"] == theirs["held_out"]
    assert ours["grads"].keys() == theirs["grads"].keys() and len(ours["grads"]) > LAYERS
    for name, expected in theirs["grads"].items():
        assert torch.equal(ours["grads"][name], expected), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_rounded_weights_are_kept_for_the_backward_pass(pair):
    assert pair[0]["autocast"]["alive"] == 7 * LAYERS, "the test sees what autocast keeps"
    assert pair[0]["bf16"]["alive"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_less_is_gathered(pair):
    name = "_allgather_base_"
    before, after = (pair[0][way]["bytes"][name] for way in ("autocast", "bf16"))
    assert after < 0.75 * before
    assert pair[0]["whole"]["bytes"][name] < 0.8 * after
    assert pair[0]["bf16"]["calls"][name] == pair[0]["autocast"]["calls"][name]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradients_are_summed_in_fp32(pair):
    name = "_reduce_scatter_base_"
    assert pair[0]["bf16"]["bytes"][name] == pair[0]["autocast"]["bytes"][name]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradients_are_summed_once_a_step_where_asked(pair):
    name = "_reduce_scatter_base_"
    groups = LAYERS + 1
    assert pair[0]["bf16"]["calls"][name] == groups * MICRO_BATCHES
    assert pair[0]["once"]["calls"][name] == groups
    for once, each, error in (("once", "bf16", 1e-5), ("fp32 once", "fp32", 1e-6)):
        for key, expected in pair[0][each]["grads"].items():
            torch.testing.assert_close(pair[0][once]["grads"][key], expected, rtol=error, atol=error)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_replicas_on_several_machines_learn_the_same_and_cross_the_network_once_a_step(tmp_path):
    """Four processes, as if on two machines; what they send inside one and between them is told by the calls."""
    ways = {"flat": (BF16, {"bf16": True}), "replicas": (REPLICAS, {"bf16": True})}
    found = of_team(tmp_path, 4, ways)
    flat, replicas = found[0]["flat"], found[0]["replicas"]
    groups = LAYERS + 1
    assert "allreduce_" not in flat["calls"] and replicas["calls"]["allreduce_"] == groups
    assert replicas["calls"]["_reduce_scatter_base_"] == groups * MICRO_BATCHES
    assert replicas["bytes"]["_reduce_scatter_base_"] == 2 * flat["bytes"]["_reduce_scatter_base_"]
    assert replicas["local"] >= 2 * flat["local"] - 100
    assert replicas["held_out"] == flat["held_out"]
    for name, expected in flat["grads"].items():
        torch.testing.assert_close(replicas["grads"][name], expected, rtol=1e-5, atol=1e-5)


LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
LLAMA |= {"vocab_size": 128_256, "tie_word_embeddings": False}
TEACHER = spec_from_config(tiny_config("llama", **LLAMA, hidden_size=4096, intermediate_size=14336), "BF16")
STUDENT = spec_from_config(tiny_config("llama", **LLAMA, hidden_size=3072, intermediate_size=9216), "BF16")
"""Eight billion parameters, and a student of half as many."""


def held(sharding: Sharding, num_processes: int) -> dict[str, int]:
    """What each card holds, for a row of 4,096 tokens."""
    conditions = Conditions(
        sequence_length=4096,
        micro_batch=1,
        recompute=True,
        in_bf16=True,
        on_processor=False,
        devices=num_processes,
        sharding=sharding,
    )
    settings = TrainingSettings(tokens=1)
    items = account(STUDENT, settings, STUDENT.num_parameters, Teaching(TEACHER), conditions)
    return {item.name: item.num_bytes for item in items}


def test_what_saves_most_traffic_is_chosen_where_there_is_room():
    def chosen(num_processes, num_machines, gigabytes):
        def fits(way):
            return sum(held(way, num_processes).values()) <= gigabytes * 1e9

        return roomiest(candidates(True, num_machines, True), fits)

    assert chosen(8, 1, 70) == Sharding(True, 1, whole_teacher=True, reduces_once=True)
    assert chosen(8, 1, 45) == Sharding(True, 1, whole_teacher=True)
    assert chosen(8, 1, 30) == chosen(8, 1, 0) == Sharding(True)
    assert chosen(16, 2, 70) == Sharding(True, 2, whole_teacher=True, reduces_once=True)
    assert chosen(2, 2, 60) == Sharding(True, 1), "a machine of one card cannot hold all of it"


def test_each_way_of_dividing_has_its_account():
    divided, whole, once, replicas = (held(way, 8) for way in (BF16, WHOLE, ONCE, REPLICAS))
    state = ["student's weights (fp32)", "gradients (fp32)", "optimizer's moments (adamw)"]
    assert sum(divided[name] for name in state) == pytest.approx(16 * STUDENT.num_parameters / 8)
    assert sum(replicas[name] for name in state) == pytest.approx(16 * STUDENT.num_parameters / 4)
    taught = "teacher's weights"
    assert divided[taught] == TEACHER.weight_bytes // 8 and whole[taught] == TEACHER.weight_bytes
    assert "teacher's embedding and head" in divided.keys() - whole.keys()
    outside = sum(tensor.num_elements for tensor in outside_layers(STUDENT))
    gradients = once["a step's gradients, divided only at its end"]
    assert gradients == 4 * (STUDENT.num_parameters - outside)
    assert "a step's gradients, divided only at its end" not in divided


def test_without_a_teacher_none_is_kept_whole():
    assert not any(way.whole_teacher for way in candidates(True, 2, False))
    assert [way.num_replicas for way in candidates(False, 2, False)] == [2, 2, 1, 1]


def test_a_team_on_several_machines_knows_how_many(monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert Team.current().num_machines == 1 and Team.current().least(2.5) == 2.5
    finally:
        dist.destroy_process_group()


def test_a_team_in_bf16_ends_where_one_process_does_and_its_work_is_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.numerics.has_fast_bf16", lambda device: True)
    monkeypatch.setattr("compress.train.checkpoint.WORK_PER_WRITE", 0)
    model = parent(tmp_path / "parent", "qwen3")
    config = step.Config(tokens=16 * 4 * 6, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0)
    assert not step.run(model, config, context(tmp_path / "alone")).facts.keys() & {"sharding"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(Stopped):
            step.run(model, config, context(tmp_path / "team", kind=StopsAfter))
        outcome = step.run(model, config, context(tmp_path / "team"))
    finally:
        dist.destroy_process_group()
    assert outcome.facts["resumed"] == 1 and outcome.facts["precision"] == "bf16"
    assert outcome.facts["sharding"] == {
        "gathered_in": "bf16",
        "replicas": 1,
        "gradients_summed": "after each micro-batch",
    }
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("team", "alone"))
    assert ours.keys() == theirs.keys() and any("norm" in name for name in ours)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)
