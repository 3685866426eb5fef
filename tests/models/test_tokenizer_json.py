import json

import pytest
from tokenizers import Tokenizer

from compress.errors import InputError
from compress.models import tokenizer_json
from compress.models.tokenizer_json import BYTES, always_kept, kind, parts, read, token_ids, without_dropped
from tests.models.small_tokenizers import KINDS, TEXTS, UNICODE, write


def content(name, tmp_path):
    return read(write(name, tmp_path))


def model(vocab, merges, **settings):
    tokens = {token: index for index, token in enumerate(vocab)}
    return {"added_tokens": [], "model": {"type": "BPE", "vocab": tokens, "merges": merges, **settings}}


@pytest.mark.parametrize("name", KINDS)
def test_dropping_nothing_changes_nothing(name, tmp_path):
    whole = content(name, tmp_path)
    assert without_dropped(whole, {index: index for index in token_ids(whole).values()}) == whole


@pytest.mark.parametrize("name", KINDS)
def test_what_is_always_kept_can_still_read_any_text(name, tmp_path):
    whole = content(name, tmp_path)
    before = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    kept = sorted(always_kept(whole))
    assert len(kept) < len(token_ids(whole))
    after = Tokenizer.from_str(json.dumps(without_dropped(whole, {old: new for new, old in enumerate(kept)})))
    for text in (UNICODE, *TEXTS[:3]):
        old, new = before.encode(text).ids, after.encode(text).ids
        assert len(new) > len(old) and after.decode(new) == before.decode(old)


def test_a_token_is_built_as_the_merges_of_its_text_go(tmp_path):
    # Every split of "abc" is a merge; "bc" comes first.
    found = parts(
        model(["a", "b", "c", "bc", "ab", "abc"], [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]])
    )
    assert found == {3: (1, 2), 4: (0, 1), 5: (0, 3)}


def test_a_token_no_text_is_merged_to_needs_nothing():
    # "b c" always goes first, so "ab" + "c" never meet, and "a" + "bc" is no merge; another way exists on paper only.
    merges = [["b", "c"], ["a", "b"], ["ab", "c"], ["abc", "d"], ["ab", "cd"]]
    found = parts(model(["a", "b", "c", "d", "bc", "ab", "abc", "abcd", "cd"], merges))
    assert 7 not in found


def test_marks_of_word_insides_and_ends_are_no_characters():
    merges = ["l ##o", "lo ##w</w>"]
    vocab = ["l", "##o", "##w</w>", "lo", "low</w>", "w</w>", "##x", "##", "</w>"]
    whole = model(vocab, merges, continuing_subword_prefix="##", end_of_word_suffix="</w>")
    assert parts(whole) == {3: (0, 1), 4: (3, 2)}
    assert always_kept(whole) == {0, 1, 2, 5, 6}


def test_with_byte_fallback_bytes_and_the_space_are_the_alphabet(tmp_path):
    whole = content("sentencepiece", tmp_path)
    ids = token_ids(whole)
    names = {name for name, index in ids.items() if index in always_kept(whole)}
    assert names == {*BYTES, "▁", "<unk>", "<s>", "</s>"}
    whole["model"]["byte_fallback"] = False
    assert {name for name in ids if len(name) == 1} <= {n for n, i in ids.items() if i in always_kept(whole)}


def test_merges_keep_the_way_they_are_written(tmp_path):
    for name, form in (("sentencepiece", str), ("demo", list)):
        whole = content(name, tmp_path / name)
        kept = sorted({*always_kept(whole), *range(600)})
        merges = without_dropped(whole, {old: new for new, old in enumerate(kept)})["model"]["merges"]
        assert merges and {type(merge) for merge in merges} == {form}


def test_ids_in_templates_marks_and_padding_are_renumbered(tmp_path):
    whole = content("word_piece", tmp_path)
    whole["padding"] = {"pad_id": 5, "pad_token": "!"}
    processors = [
        whole["post_processor"],
        {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [9]}}},
    ]
    whole["post_processor"] = {"type": "Sequence", "processors": processors}
    assert {2, 3, 5, 9} <= always_kept(whole)
    kept = [0, 1, 2, 3, 4, 5, 9]
    new = without_dropped(whole, {old: index for index, old in enumerate(kept)})
    assert new["padding"]["pad_id"] == 5
    assert new["post_processor"]["processors"][0]["sep"] == ["[SEP]", 3]
    assert new["post_processor"]["processors"][1]["special_tokens"]["x"]["ids"] == [6]


@pytest.mark.parametrize(
    ("name", "expected"), [("demo", "BPE"), ("unigram", "Unigram"), ("word_piece", "WordPiece")]
)
def test_files_that_do_not_say_their_kind_are_understood(name, expected, tmp_path):
    whole = content(name, tmp_path)
    del whole["model"]["type"]
    assert kind(whole) == expected


def test_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Rare", "vocab": {}}}))
    with pytest.raises(InputError, match="tokens cannot be taken out of a Rare model"):
        tokenizer_json.read(tmp_path)
