"""Files that are named wrongly: told with what may be meant."""

import pytest

from compress.data.files import read_text, require_file
from compress.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("chats.jsonl", "a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("chat.jsonl", r"no such file: \S*chat\.jsonl; did you mean 'chats\.jsonl'\?$"),
        ("unheard-of", r"no such file: \S*unheard-of\.$"),
        ("empty/a.txt", r"no such file: \S*empty/a\.txt\.$"),
        ("nowhere/a.txt", r"no such file: \S*a\.txt; there is no folder \S*nowhere$"),
        (
            "*.txt",
            r"no such file: \S*\*\.txt; name files, each by itself: a\.txt, b\.txt, c\.txt and 1 more$",
        ),
        ("[!a]*l", r"no such file: \S*; name files, each by itself: chats\.jsonl$"),
        (".", r"is a folder; name files, each by itself: a\.txt, b\.txt, c\.txt and 2 more$"),
        ("empty", r"empty is a folder; name files, each by itself$"),
        ("**a**", r"no such file: "),
    ],
)
def test_what_is_no_file_is_told_with_what_may_be_meant(folder, path, message):
    with pytest.raises(InputError, match=message):
        require_file(str(folder / path))


def test_a_file_that_is_there_is_read(folder):
    assert require_file(str(folder / "a.txt")) == folder / "a.txt"
    assert read_text(str(folder / "a.txt")) == "a text"


def test_a_file_that_is_not_utf_8_is_named(folder):
    (folder / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text: .*position 3"):
        read_text(str(folder / "a.txt"))
