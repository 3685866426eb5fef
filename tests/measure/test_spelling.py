"""Where two cuts of a text have read equally far."""

import pytest

from compress.measure.spelling import Spelling, aligned
from compress.models.checkpoint import load_tokenizer
from tests.models.small_tokenizers import KINDS, TEXTS, UNICODE, write


def cut(*tokens):
    return [token if isinstance(token, bytes) else token.encode() for token in tokens]


def test_cuts_meet_again_after_each_difference():
    theirs = cut("the", " international", " sea", "side", " is", " far")
    own = cut("the", " inter", "national", " seas", "ide", " is", " f", "ar")
    assert aligned(theirs, own) == ([(0, 0), (2, 1), (4, 3), (5, 4), (7, 5)], True)


def test_the_parts_of_a_character_are_told_apart():
    theirs = cut("a", "é".encode()[:1], "é".encode()[1:], "b")
    assert aligned(theirs, cut("a", "é", "b")) == ([(0, 0), (1, 2), (2, 3)], True)
    assert aligned(cut("a", "é", "b"), cut("aé", "b")) == ([(0, 1), (1, 2)], True)


@pytest.mark.parametrize(
    ("theirs", "own", "pairs"),
    [
        (
            cut("ing", " on"),
            cut(" in", "g", " o", "n"),
            [(1, 0), (3, 1)],
        ),  # half a word, with a space of its own now
        (cut(b"\xa9", " on"), cut(" on"), [(0, 1)]),  # the end of a character is lost
        (cut(b"\xa9\xef\xbf\xbd", " o", "n"), cut(" on"), [(0, 2)]),
        (cut("on", b"\xf0\x9f"), cut("o", "n"), [(1, 0)]),  # its beginning
    ],
)
def test_what_a_rows_borders_lose_is_no_difference(theirs, own, pairs):
    assert aligned(theirs, own) == (pairs, True)


def test_nothing_is_compared_from_another_text_on():
    theirs, own = cut("one", " two", " three", " four"), cut("one", " t", "wo", " tree", " four")
    assert aligned(theirs, own) == ([(0, 0), (2, 1)], False)
    assert aligned(cut("one"), cut("on", "e", " more")) == ([(1, 0)], False)
    assert aligned([], []) == ([], True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_texts_tokens_are_the_text(kind, tmp_path):
    write(kind, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in [*TEXTS[:5], *([] if kind in ("unigram", "word_piece") else [UNICODE])]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        read = b"".join(Spelling(tokenizer)(ids))
        if kind == "word_piece":
            assert read.decode() == "".join(text.lower().split())
        else:
            assert read.decode().removeprefix(" ") == text


def test_added_tokens_are_their_text(tmp_path):
    write("byte_level", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    plain = tokenizer("a\n\n é")["input_ids"]
    assert b"".join(Spelling(tokenizer)(plain)) == "a\n\n é".encode()
    tokenizer.add_tokens(["\n\n é"])
    ids = tokenizer("a\n\n é")["input_ids"]
    assert len(ids) == 2 < len(plain)
    assert Spelling(tokenizer)(ids) == [b"a", "\n\n é".encode()]
