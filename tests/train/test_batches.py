import torch

from compress.data.batch import Batch
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


class Marked(InMemory):
    """Rows of two documents."""

    def learning_batch(self, indices) -> Batch:
        ids_BT = self._ids[list(indices)]
        return Batch(ids_BT, positions=torch.tensor([0, 1, 0]).expand_as(ids_BT))


def test_texts_of_a_row_are_apart_unless_asked_to_be_one():
    apart, together = (Batches(Marked(ROWS), 4, 1, asked).at(0) for asked in (False, True))
    assert apart.positions is not None and together.positions is None
    assert torch.equal(apart.ids, together.ids)
    assert (len(apart.targets), len(together.targets)) == (4, 8)
