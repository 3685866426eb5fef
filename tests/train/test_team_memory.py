"""How a team finds what fits: together, from below, and nobody runs out on the way."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from compress.errors import StepFailed
from compress.machine import Machine, planning_for
from compress.models.spec import read_spec
from compress.train import team_memory
from compress.train.cost import training_memory
from compress.train.distributed import load_at_leader
from compress.train.memory_account import MOMENT_BYTES, account, total
from compress.train.numerics import Numerics
from compress.train.objective import NextToken
from compress.train.schedule import Schedule
from compress.train.sharding import DIVIDED
from compress.train.step import Config
from compress.train.team_memory import TeamTraining, largest_promised
from tests.train.inputs import CARD, InMemory, countable_ids, parent

CONFIG = Config(tokens=16 * 32 * 2, batch_tokens=16 * 32, learning_rate=1e-3)
NUMERICS = Numerics(device="cpu", precision="fp32", num_threads=1, micro_batch=1, attention="sdpa")


class Pretended:
    """Memory of which models take some, and every row more; kept activations four times as much as recomputed."""

    def __init__(self, room: float, held: float = 100.0, row: float = 10.0) -> None:
        self.room, self.held, self.row = room, held, row
        self.rows = 0
        self.recomputes = lambda: False
        self.tried: list[int] = []

    def available(self) -> float:
        return self.room

    def taken_by(self, work):
        work()
        self.tried.append(self.rows)
        return self.held, self.held + self.row * self.rows * (1 if self.recomputes() else 4)


def team_training(folder: Path, memory: Pretended, config: Config = CONFIG) -> TeamTraining:
    student = load_at_leader(folder, dtype=torch.float32)
    data = InMemory(countable_ids())

    def read(size):
        memory.rows = size
        return data.learning_batch(range(size))

    memory.recomputes = lambda: student.is_activation_checkpointing
    # Of moments nothing is counted here: all that is pretended is in the figures.
    spec = read_spec(folder)
    held = partial(account, spec, config, spec.num_parameters, None)
    return TeamTraining(NextToken(student), student, read, config, Schedule.of(config, 16), memory, held)


@pytest.fixture
def team_of_one(monkeypatch):
    monkeypatch.setitem(MOMENT_BYTES, "adamw", 0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tried(folder, memory, numerics=NUMERICS, **settings):
    training = team_training(folder, memory, CONFIG.model_copy(update=settings))
    training.divide(numerics, is_new=True)  # on a processor nothing is chosen
    return training.tried(numerics, DIVIDED)


def test_the_largest_size_is_found_from_below_and_none_is_tried_that_may_not_fit(tmp_path, team_of_one):
    memory = Pretended(room=300)
    found = tried(parent(tmp_path / "parent").path, memory)
    assert found.micro_batch == 4 and not found.checkpoint_activations
    assert memory.tried == [1, 2, 4], "8 rows would have taken 420 of 300"


def test_activations_are_recomputed_where_one_row_does_not_fit_without(tmp_path, team_of_one):
    memory = Pretended(room=130)
    found = tried(parent(tmp_path / "parent").path, memory)
    assert found.checkpoint_activations and found.micro_batch == 2
    assert memory.tried == [1, 1, 2]


def test_where_nothing_fits_it_is_said_before_the_first_step(tmp_path, team_of_one):
    with pytest.raises(StepFailed, match=r"memory is too small for 1 sequences.*more GPUs.*nf4"):
        tried(parent(tmp_path / "parent").path, Pretended(room=105))


def test_what_was_asked_for_is_tried_alone(tmp_path, team_of_one):
    model = parent(tmp_path / "parent").path
    memory = Pretended(room=300)
    assert tried(model, memory, micro_batch=4).micro_batch == 4 and memory.tried == [4]
    with pytest.raises(StepFailed, match="too small for 8 sequences"):
        tried(model, Pretended(room=300), micro_batch=8, checkpoint_activations=False)


def test_no_gradients_are_left_and_no_random_numbers_used(tmp_path, team_of_one):
    training = team_training(parent(tmp_path / "parent").path, Pretended(room=300))
    training.divide(NUMERICS, is_new=True)
    before = torch.get_rng_state()
    training.tried(NUMERICS, DIVIDED)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in training.student.parameters())


class RunsOut(Pretended):
    def taken_by(self, work):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_process_that_runs_out_of_memory_all_the_same_says_so(tmp_path, team_of_one):
    with pytest.raises(StepFailed, match=r"too small.*Tried to allocate 2 GiB"):
        training = team_training(parent(tmp_path / "parent").path, RunsOut(room=300))
        training.tried(NUMERICS, DIVIDED)


@pytest.mark.parametrize(("factor", "recomputes"), [(1.01, False), (0.99, True)])
def test_activations_are_kept_where_the_plans_account_leaves_room(tmp_path, team_of_one, factor, recomputes):
    training = team_training(parent(tmp_path / "parent").path, Pretended(room=0, held=0.0))
    with planning_for(Machine(card=CARD, num_cards=1)):
        settings = CONFIG.model_copy(update={"precision": "fp32"})
        planned = training_memory(read_spec(tmp_path / "parent"), settings, None, 16, 32, recompute=False)
    on_card = NUMERICS.model_copy(update={"device": "cuda"})
    assert training.keeps_activations(on_card, DIVIDED, factor * total(planned)) != recomputes


def test_on_gpus_models_are_divided_by_what_fits_and_what_was_decided_once_stays(
    tmp_path, team_of_one, monkeypatch
):
    divided, tried_for = [], []
    monkeypatch.setattr(team_memory, "shard", lambda objective, device, sharding: divided.append(sharding))
    monkeypatch.setattr(TeamTraining, "tried", lambda self, numerics, _: tried_for.append(1) or numerics)
    training = team_training(parent(tmp_path / "parent").path, Pretended(room=1e12, held=0.0))
    on_gpu = NUMERICS.model_copy(update={"device": "cuda", "precision": "bf16"})
    roomy, sharding = training.divide(on_gpu, is_new=True)
    assert sharding.reduces_once and sharding.gathers_bf16 and not roomy.checkpoint_activations
    training.memory.room = 1e8
    narrow, sharding = training.divide(on_gpu, is_new=True)
    assert not sharding.reduces_once and narrow.checkpoint_activations
    assert len(divided) == 2 and len(tried_for) == 2
    assert training.divide(on_gpu, is_new=False)[0] == on_gpu and len(tried_for) == 2


def test_sizes_grow_only_as_far_as_the_last_one_promises():
    seen = []

    def trial(size):
        seen.append(size)
        return 0.3 + 0.1 * size, 0.3 + 0.2 * size

    assert largest_promised(trial, 64) == 4 and seen == [1, 2, 4]
    assert largest_promised(lambda size: (0.1, 0.1), 24) == 24
    assert largest_promised(lambda size: (1.1, 2.0), 24) is None


def member(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    # The second process has less room, and more on its card: all do what suits it.
    MOMENT_BYTES["adamw"] = 0
    memory = [Pretended(room=900), Pretended(room=500, held=300.0)][rank]
    training = team_training(folder / "parent", memory)
    training.divide(NUMERICS, is_new=True)
    found = training.tried(NUMERICS, DIVIDED)
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps([memory.tried, found.micro_batch]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_with_unequal_memory_agree(tmp_path, monkeypatch):
    parent(tmp_path / "parent")
    torch.multiprocessing.spawn(member, (tmp_path,), nprocs=2)
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1]
    assert both[0][0][0] == 1 and both[0][1] < 16, "alone the first would have taken all 16 rows"
