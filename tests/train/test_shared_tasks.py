"""Watched tasks in a team: each process answers its share of the items, and all know the same in the end."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from compress.meters.tasks import in_order, judged
from compress.models.checkpoint import load_model, load_tokenizer
from compress.train.distributed import load_at_leader, passing_together, reshard, shard
from compress.train.objective import NextToken
from compress.train.tasks import WatchedTasks
from tests.train.inputs import parent

TASKS = ("world_facts", "world_sums")
SAMPLES = 41
"""More than a batch of rows in one process, and an odd number."""


def watched(folder: Path, own: str) -> WatchedTasks:
    return WatchedTasks(TASKS, SAMPLES, load_tokenizer(folder / "parent"), folder / f"tasks-{own}")


def pass_alone(student: PreTrainedModel, times: int) -> None:
    with torch.inference_mode(), passing_together(student):
        for _ in range(times):
            student(torch.arange(5)[None])


def member(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    objective = NextToken(load_at_leader(folder / "parent", dtype=torch.float32)).eval()
    shard(objective, "cpu")
    passes = []
    objective.student.model.register_forward_pre_hook(lambda *_: passes.append(1))
    tasks = watched(folder, str(rank))
    answers = objective.whole(tasks.answers)
    num_passes = len(passes)
    objective.whole(lambda student: pass_alone(student, 3 if rank == 1 else 0))
    reshard(objective)
    assert len(passes) == num_passes + 3, "the first went along"
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps([answers, num_passes]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_team_shares_the_items_and_knows_all_answers(tmp_path):
    model = parent(tmp_path / "parent", max_position_embeddings=512)
    torch.multiprocessing.spawn(member, (tmp_path,), nprocs=2)
    (first, passes), (second, others) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert first == second and passes == others
    assert first == watched(tmp_path, "alone").answers(load_model(model.path))
    assert {len(right) for right in first.values()} == {SAMPLES}


def logged(leaf: str, item: int, name: str, acc: float) -> tuple[str, dict]:
    sample = {"doc_id": item, "filter": name, "metrics": ["acc"], "acc": acc, "doc": {"question": "?"}}
    return leaf, sample


def test_parts_come_together_in_the_order_of_one_process():
    whole = [logged(leaf, item, name, item % 2) for leaf in "ab" for name in "xy" for item in (3, 5, 8)]
    of_one = [each for each in whole if each[1]["doc_id"] in (3, 8)]
    of_other = [each for each in whole if each[1]["doc_id"] == 5]
    together = in_order([judged(of_one), [], judged(of_other)], {"a": None, "b": None})
    assert together == judged(whole) and "doc" not in together[0][1]
