"""Every row begins as the tokenizer begins a text, whatever it begins within."""

import itertools
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.data.encode import Encoded, Encoder
from compress.data.marks import positions
from compress.data.row_writer import RowWriter
from compress.data.tokens import JSON, PackedTokens

WORDS = [f"w{i}" for i in range(60)]
MARKS = {
    "own marks": {"bos_token": "<s>", "eos_token": "</s>"},
    "one mark": {"bos_token": "<|end|>", "eos_token": "<|end|>"},
    "no start": {"eos_token": "</s>"},
    "no marks": {},
    "encoder": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
}


def tokenizer_with(marks):
    names = [*dict.fromkeys(marks.values()), "<unk>", *WORDS]
    bare = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", **marks)


TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 3), (3, 17), (20, 1), (21, 30), (5, 6), (11, 9))]


def packed(folder, marks, length=7, rows=None):
    """The rows of the texts, and the encoder they are made by."""
    folder.mkdir(exist_ok=True)
    (folder / "result").mkdir()
    encoder = Encoder(tokenizer_with(marks), None)
    with RowWriter(folder, length, np.dtype("<u2"), rows, row_start=encoder.row_start) as writer:
        for document in encoder.encode(iter(TEXTS)):
            writer.write(document)
        facts = writer.finish(rows or writer.num_tokens // length, folder / "result")
    (folder / "result" / JSON).write_text(json.dumps(facts))
    return PackedTokens.open(folder / "result"), encoder, facts


def by_hand(marks, length):
    """The same, token by token: ids, and whether a document begins there."""
    tokenizer = tokenizer_with(marks)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    stream, begins = [], []
    for text in TEXTS:
        before = [] if start is None or start == end else [start]
        ids = [*before, *tokenizer(text)["input_ids"], *([] if end is None else [end])]
        is_first = True
        for token in ids:
            if len(stream) % length == 0 and start is not None and token != start:
                stream.append(start)
                begins.append(is_first)
                is_first = False
            stream.append(token)
            begins.append(is_first)
            is_first = False
    whole = len(stream) // length * length
    return np.array(stream[:whole]).reshape(-1, length), np.array(begins[:whole]).reshape(-1, length)


@pytest.mark.parametrize("length", [2, 5, 7, 64])
@pytest.mark.parametrize("name", MARKS)
def test_rows_are_those_made_by_hand(name, length, tmp_path):
    rows, encoder, facts = packed(tmp_path / "out", MARKS[name], length)
    expected, begins = by_hand(MARKS[name], length)
    found = rows.batch(range(rows.num_sequences)).numpy()
    np.testing.assert_array_equal(found, expected)
    batch = rows.learning_batch(range(rows.num_sequences))
    if begins[:, 1:].any():
        np.testing.assert_array_equal(batch.positions.numpy(), positions(begins))
    assert batch.learned is None  # a mark that is no target makes no row one of answers
    if encoder.row_start is not None:
        assert (found[:, 0] == encoder.row_start).all()
    assert facts["tokens"] == expected.size


def test_texts_with_one_mark_are_parted_by_it_once(tmp_path):
    rows, encoder, _ = packed(tmp_path / "out", MARKS["one mark"], 64)
    ids = rows.batch([0])[0].tolist()
    assert ids[0] == encoder.row_start == 0
    assert ids.count(0) == 1 + len(TEXTS[:5])  # the row's own, and one behind each text that ends in it
    assert all(a or b for a, b in itertools.pairwise(ids))


def test_nothing_is_written_past_the_rows_that_are_wanted(tmp_path):
    rows, _, facts = packed(tmp_path / "out", MARKS["own marks"], 7, rows=3)
    expected, _ = by_hand(MARKS["own marks"], 7)
    np.testing.assert_array_equal(rows.batch(range(3)).numpy(), expected[:3])
    assert facts["num_sequences"] == 3


def test_an_answers_row_that_begins_within_it_is_not_marked_as_learned(tmp_path):
    """Of a conversation only answers are learned; the mark before a row is none."""
    folder = tmp_path / "out"
    folder.mkdir()
    learned = np.array([False] * 4 + [True] * 4)
    with RowWriter(folder, 5, np.dtype("<u2"), row_start=0) as writer:
        writer.write(Encoded(np.arange(1, 9), learned, 8, 1))
        (tmp_path / "result").mkdir()
        writer.finish(2, tmp_path / "result")
    ids = np.fromfile(tmp_path / "result/tokens.bin", "<u2").reshape(2, 5)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]])
