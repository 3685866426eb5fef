import pytest
import torch

from compress.data.batch import Batch
from compress.train.distributed import Team


def test_a_process_alone_is_a_team_of_one():
    team = Team.current()
    assert team.leads and not team.is_launched and team.size == 1
    assert team.sums(1.5, 2) == [1.5, 2] and team.agree("yes") == "yes"
    assert team.leader_first(lambda: 7) == 7


def rows(team: Team, batch: Batch, micro_batch: int) -> list[list[int]]:
    return [part.ids[:, 0].tolist() for part in team.share(batch, micro_batch)]


def test_every_row_is_learned_by_one_process_and_all_read_as_often():
    batch = Batch(torch.arange(7)[:, None].expand(7, 3))
    parts = [list(Team(rank, 3, is_launched=True).share(batch, 2)) for rank in range(3)]
    assert [len(each) for each in parts] == [2, 2, 2]
    learned = [int(row[0]) for each in parts for part in each if part.learned is None for row in part.ids]
    assert sorted(learned) == list(range(7))
    idle = [part for each in parts for part in each if part.learned is not None]
    assert len(idle) == 2 and all(len(part.targets) == 0 and len(part) == 1 for part in idle)


@pytest.mark.parametrize("micro_batch", [1, 3, 10])
def test_alone_a_batch_is_split_as_it_stands(micro_batch):
    batch = Batch(torch.arange(5)[:, None].expand(5, 3))
    assert [row for part in rows(Team(), batch, micro_batch) for row in part] == list(range(5))
