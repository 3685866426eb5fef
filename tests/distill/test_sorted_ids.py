import numpy as np
import pytest

from compress.distill.sorted_ids import SortedIds


@pytest.mark.parametrize("vocabulary", [1, 2, 32, 33, 259, 8_192, 131_072, 151_936, 262_144])
@pytest.mark.parametrize("num_ids", [1, 3, 16, 32])
def test_ascending_ids_come_back_also_where_they_repeat(vocabulary, num_ids):
    ids = np.sort(np.random.default_rng(0).integers(0, vocabulary, (50, num_ids)), axis=1)
    ids[0], ids[1], ids[2, -1] = 0, vocabulary - 1, vocabulary - 1
    code = SortedIds(num_ids, vocabulary)
    rows = code.encode(ids)
    assert rows.shape == (50, code.num_bytes) and rows.dtype == np.uint8
    np.testing.assert_array_equal(code.decode(rows), ids)


@pytest.mark.parametrize("num_ids", [16, 32])
def test_an_id_takes_at_most_a_bit_more_than_it_must(num_ids):
    vocabulary = 131_072
    # As many bits as there are sets of that size, by Stirling: K · log2(e · V / K), and less.
    needed = num_ids * np.log2(np.e * vocabulary / num_ids) - 0.5 * np.log2(2 * np.pi * num_ids)
    assert needed <= 8 * SortedIds(num_ids, vocabulary).num_bytes <= needed + num_ids + 8
