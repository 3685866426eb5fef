import torch

from compress.train.batches import Batches
from tests.train.inputs import InMemory

ROWS = torch.arange(10)[:, None].expand(10, 3)


def rows_of(batches: Batches, steps) -> list[int]:
    return [int(row) for step in steps for row in batches.at(step).ids[:, 0]]


def test_every_epoch_reads_every_row_once_in_an_order_of_its_own():
    read = rows_of(Batches(InMemory(ROWS), 4, seed=1), range(5))
    first, second = read[:10], read[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_step_reads_the_same_rows_whatever_was_read_before():
    in_turn = Batches(InMemory(ROWS), 4, seed=1)
    read = [in_turn.at(step) for step in range(8)]
    for step in (7, 2, 5):
        assert torch.equal(Batches(InMemory(ROWS), 4, seed=1).at(step).ids, read[step].ids)


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(rows_of(Batches(InMemory(ROWS), 25, seed=1), [0])[:20]) == sorted([*range(10)] * 2)
