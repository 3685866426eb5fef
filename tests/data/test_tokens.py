import json

import numpy as np
import pytest
import torch

from compress.data.tokens import PackedTokens, id_dtype, order
from compress.errors import InputError


def write(folder, ids, dtype="<u2"):
    np.array(ids, dtype=dtype).tofile(folder / "tokens.bin")
    shape = {"num_sequences": len(ids), "sequence_length": len(ids[0]), "dtype": dtype}
    (folder / "tokens.json").write_text(json.dumps(shape))


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_rows_and_batches_come_back_as_written(tmp_path, dtype):
    ids = torch.randint(0, 2**16, (7, 5), generator=torch.Generator().manual_seed(0))
    write(tmp_path, ids.tolist(), dtype)
    packed = PackedTokens.open(tmp_path)
    assert (packed.num_sequences, packed.sequence_length) == (7, 5)
    assert torch.equal(packed.rows(2, 4), ids[2:4])
    assert torch.equal(packed.batch([6, 0, 0]), ids[[6, 0, 0]])
    assert packed.rows(0, 1).dtype == torch.int64


def test_ids_are_stored_in_two_bytes_while_they_fit():
    assert id_dtype(2**16) == np.dtype("<u2")
    assert id_dtype(2**16 + 1) == np.dtype("<u4")


def test_a_file_cut_short_is_refused(tmp_path):
    write(tmp_path, [[1, 2], [3, 4]])
    (tmp_path / "tokens.bin").write_bytes(b"\x01\x00")
    with pytest.raises(InputError, match=r"has 2 bytes where tokens\.json promises 8"):
        PackedTokens.open(tmp_path)


def test_a_folder_without_tokens_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no packed tokens"):
        PackedTokens.open(tmp_path)


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    first = order(100, seed=7, epoch=0)
    assert sorted(first.tolist()) == list(range(100))
    assert torch.equal(first, order(100, seed=7, epoch=0))
    assert not torch.equal(first, order(100, seed=7, epoch=1))
    assert not torch.equal(first, order(100, seed=8, epoch=0))
