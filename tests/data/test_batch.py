import pytest
import torch

from compress.data.batch import Batch

IDS_BT = torch.arange(10, 22).view(2, 6)
POSITIONS_BT = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4]])
LEARNED_BT = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 1]]).bool()


@pytest.mark.parametrize("learned_BT", [None, LEARNED_BT])
@pytest.mark.parametrize("positions_BT", [None, POSITIONS_BT])
def test_targets_and_what_stands_before_them_are_what_the_marks_say(positions_BT, learned_BT):
    batch = Batch(IDS_BT, positions_BT, learned_BT)
    wanted = [
        (row, place)
        for row in range(2)
        for place in range(1, 6)
        if (positions_BT is None or positions_BT[row, place] > 0)
        and (learned_BT is None or learned_BT[row, place])
    ]
    assert batch.targets.tolist() == [int(IDS_BT[row, place]) for row, place in wanted]
    values_BTD = torch.randn(2, 6, 3)
    before = torch.stack([values_BTD[row, place - 1] for row, place in wanted])
    torch.testing.assert_close(batch.before_targets(values_BTD), before, rtol=0, atol=0)


def test_documents_begin_where_positions_start_anew_and_with_every_row():
    documents = Batch(IDS_BT, POSITIONS_BT).documents
    assert documents.starts.tolist() == [0, 3, 6, 7, 12] and documents.longest == 5
    assert documents.starts.dtype == torch.int32
    whole = Batch(IDS_BT).documents
    assert whole.starts.tolist() == [0, 6, 12] and whole.longest == 6


def test_no_document_reaches_into_the_next_row():
    documents = Batch(IDS_BT, torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 0, 1, 2]])).documents
    assert documents.starts.tolist() == [0, 6, 9, 12]


def test_parts_of_a_batch_have_documents_and_targets_of_their_own():
    batch = Batch(IDS_BT, POSITIONS_BT, LEARNED_BT)
    assert batch.documents.longest == 5
    first, second = batch.split(1)
    assert first.documents.starts.tolist() == [0, 3, 6] and second.documents.starts.tolist() == [0, 1, 6]
    assert torch.equal(torch.cat([first.targets, second.targets]), batch.targets)
    assert torch.equal(batch.rows_at([1]).targets, second.targets)


def test_on_a_device_nothing_is_looked_at():
    """A tensor on ``meta`` has no values: whoever asks for one fails, as a GPU would have to be waited for."""
    batch = Batch(IDS_BT, POSITIONS_BT, LEARNED_BT, rows=torch.tensor([4, 9]))
    there = batch.to("meta")
    assert there.targets.shape == batch.targets.shape and there.targets.is_meta
    assert there.before_targets(torch.empty(2, 6, 3, device="meta")).shape == (len(batch.targets), 3)
    assert there.documents.starts.is_meta and there.documents.longest == 5
    assert there.with_ids(torch.empty_like(there.ids)).targets.shape == batch.targets.shape
    assert there.rows.tolist() == [4, 9]  # what is stored about them is found by number
    # torch's words for asking ``meta`` for a value differ by operation.
    with pytest.raises(RuntimeError):
        Batch(there.ids, there.positions).targets  # noqa: B018


def test_the_same_rows_in_other_ids_keep_their_marks():
    batch = Batch(IDS_BT, POSITIONS_BT, LEARNED_BT)
    other = batch.with_ids(IDS_BT + 100)
    assert torch.equal(other.targets, batch.targets + 100)
    assert torch.equal(other.documents.starts, batch.documents.starts)
