import numpy as np
import pytest

from compress.data.marks import Marks, MarkWriter, count_marks, positions
from compress.errors import InputError


@pytest.mark.parametrize("length", [3, 8, 13])
def test_marks_come_back_as_written_however_they_were_cut(tmp_path, length):
    r = np.random.default_rng(length)
    marks = r.random(10 * length + 2) < 0.4
    with MarkWriter(tmp_path / "marks", length) as writer:
        for piece in np.split(marks, np.sort(r.integers(0, len(marks), 12))):
            writer.write(piece)
        writer.keep(7)
    rows = marks[: 7 * length].reshape(7, length)
    read = Marks.open(tmp_path / "marks", 7, length)
    assert np.array_equal(read.rows(list(range(7))), rows)
    assert np.array_equal(read.rows([6, 0, 0]), rows[[6, 0, 0]])
    assert count_marks(tmp_path / "marks") == rows.sum()


def test_a_file_cut_short_or_missing_is_refused(tmp_path):
    with MarkWriter(tmp_path / "marks", 8) as writer:
        writer.write(np.ones(16, dtype=bool))
    for name, size in (("marks", 2), ("nothing", 0)):
        with pytest.raises(InputError, match=f"{name} has {size} bytes where 3 belong"):
            Marks.open(tmp_path / name, 3, 8)


def test_positions_count_from_each_start_and_from_the_row_where_a_document_goes_on():
    starts = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=bool)
    assert positions(starts).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
