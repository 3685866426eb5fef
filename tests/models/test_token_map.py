import json

from compress.models.spec import copy_tokenizer
from compress.models.special_ids import named_tokens, renumbered, special_ids
from compress.models.token_map import mapped_ids, read_kept, write_kept
from compress.models.tokenizer_json import read, without_dropped
from tests.models.small_tokenizers import write


def without(source, folder, kept):
    """A tokenizer's folder with only these ids, and its map."""
    folder.mkdir()
    copy_tokenizer(source, folder)
    content = without_dropped(read(source), {old: new for new, old in enumerate(kept)})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_kept(source, folder, kept)
    return folder


def test_the_map_leads_to_the_same_tokens_of_every_ancestor(tmp_path):
    first = write("demo", tmp_path / "first")
    once, again = [*range(400), *range(500, 600)], [*range(300), *range(400, 480)]
    second = without(first, tmp_path / "second", once)
    third = without(second, tmp_path / "third", again)
    assert mapped_ids(second, first) == read_kept(second) == once
    assert mapped_ids(third, second) == again
    assert mapped_ids(third, first) == read_kept(third) == [once[index] for index in again]


def test_folders_with_the_same_map_or_none_need_no_mapping(tmp_path):
    first = write("demo", tmp_path / "first")
    second = without(first, tmp_path / "second", range(400))
    assert mapped_ids(first, first) is None and mapped_ids(second, second) is None
    assert mapped_ids(first, second) is None


def test_the_map_travels_with_the_tokenizer(tmp_path):
    second = without(write("demo", tmp_path / "first"), tmp_path / "second", range(400))
    (tmp_path / "copy").mkdir()
    copy_tokenizer(second, tmp_path / "copy")
    assert read_kept(tmp_path / "copy") == list(range(400))


def test_a_tokenizer_that_is_not_the_maps_is_not_mapped(tmp_path):
    second = without(write("demo", tmp_path / "first"), tmp_path / "second", range(400))
    assert mapped_ids(second, write("byte_level", tmp_path / "other")) is None


def test_padding_rows_the_other_lacks_end_the_list(tmp_path):
    first = write("demo", tmp_path / "first")
    narrow = without(first, tmp_path / "narrow", range(500))
    padded = without(first, tmp_path / "padded", [*range(450), 700, 701])
    assert mapped_ids(padded, first) == [*range(450), 700, 701]
    assert mapped_ids(padded, narrow) == list(range(450))


def test_a_token_the_other_lacks_makes_them_incomparable(tmp_path):
    first = write("demo", tmp_path / "first")
    narrow, wide = (without(first, tmp_path / str(num), range(num)) for num in (400, 500))
    assert mapped_ids(wide, narrow) is None and mapped_ids(narrow, wide) == list(range(400))


def test_ids_are_found_and_renumbered_in_nested_settings():
    settings = {"eos_token_id": [3, 9], "pad_token_id": None, "text": {"bos_token_id": 1}, "hidden_size": 9}
    settings |= {"bad_words_ids": [[3, 4], [3, 5]], "unk_token_id": 77, "sep_token_id": -1}
    assert special_ids(settings) == {1, 3, 9, 77}
    new = renumbered(settings, {1: 0, 3: 1, 4: 2, 9: 3})
    assert new["eos_token_id"] == [1, 3] and new["text"] == {"bos_token_id": 0}
    assert new["pad_token_id"] is None and new["hidden_size"] == 9 and new["sep_token_id"] == -1
    assert new["bad_words_ids"] == [[1, 2]] and new["unk_token_id"] == 77


def test_tokens_are_named_as_text_or_with_their_content():
    settings = {"bos_token": "<a>", "eos_token": {"content": "<b>"}, "pad_token": None, "add_bos_token": True}
    settings |= {"extra_special_tokens": {"image": "<c>"}, "additional_special_tokens": ["<d>"]}
    settings |= {"added_tokens_decoder": {"7": {"content": "<e>"}}}
    assert named_tokens(settings) == {"<a>", "<b>", "<c>", "<d>", "<e>"}
