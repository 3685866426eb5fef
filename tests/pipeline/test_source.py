import pytest

from compress.errors import InputError
from compress.pipeline.source import apply_overrides, describe, read_source

DATA = {
    "seed": 0,
    "model": "demo",
    "evaluate": {"samples": 10},
    "steps": [{"name": "narrow"}, {"name": "recover", "tokens": "1M"}],
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_and_read(text):
        (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_source((tmp_path / "a.yaml").relative_to(tmp_path))

    return write_and_read


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("3.", 3.0), ("010", 10), ("1_000", 1000), ("-7", -7),
     ("yes", "yes"), ("off", "off"), ("true", True), ("False", False), ("null", None), ("~", None),
     ("2024-01-02", "2024-01-02"), ("1:30", "1:30"), ("0x1f", "0x1f"), (".inf", ".inf"), (".nan", ".nan"),
     ("'3'", "3"), ("50%", "50%"), ("2B", "2B"), ("1.2.3", "1.2.3"), ("9" * 5000, "9" * 5000),
     ("1e999", "1e999")],
)  # fmt: skip
def test_scalars_are_what_they_look_like(read, written, meant):
    value = read(f"key: {written}\n").data["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_every_key_and_list_item_has_its_line_and_column(read):
    source = read("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n")
    assert source.positions == {
        (): (1, 1), ("a",): (1, 1), ("b",): (2, 1), ("b", 0): (3, 5), ("b", 1): (4, 5), ("b", 1, "c"): (4, 6),
        ("b", 1, "d"): (5, 6),
    }  # fmt: skip


def test_what_is_not_written_down_is_placed_at_what_is_around_it(read):
    source = read("a: 1\nb:\n  c: 2\n")
    assert source.where(("b", "missing", 3)) == "a.yaml:2:1"
    assert source.where(("elsewhere",)) == "a.yaml:1:1"


def test_an_alias_is_a_copy_of_its_anchor(read):
    source = read("a: &shared {x: 1}\nb: *shared\n").override(["b.x=2"])
    assert source.data == {"a": {"x": 1}, "b": {"x": 2}}


def test_a_byte_order_mark_is_no_text(read):
    assert read(b"\xef\xbb\xbfkey: 1\n").data == {"key": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: caf\xe9\n", "a.yaml:1:10: is not UTF-8 text; save the file as UTF-8"),
        (b"a: 1\nb: \x00\n", "a.yaml:2:4: holds a control character; a pipeline is plain text"),
        ("[" * 5000, "a.yaml: is nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "a.yaml:1:44: aliases or nesting make this file far larger"),
        ("a: !!int abc\n", "a.yaml:1:4: 'abc' is no int"),
        ("a: !custom {b: 1}\n", "a.yaml:1:4: the tag !custom is not allowed in a pipeline"),
        ("? [a, b]\n: c\n", "a.yaml:1:3: a key must be text, found a list; put it in quotes"),
        ("a: @x\n", "a.yaml:1:4: a character that cannot start a value; put the text in quotes"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(read, text, message):
    with pytest.raises(InputError) as raised:
        read(text)
    assert str(raised.value).startswith(message)


def test_a_file_that_is_not_there_is_told_with_the_nearest_that_is(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(
        InputError, match=r"quikstart\.yaml: there is no such file; did you mean 'quickstart\.yaml'\?"
    ):
        read_source(tmp_path / "quikstart.yaml")
    with pytest.raises(InputError, match=r"there is no such file\.$"):
        read_source(tmp_path / "nowhere" / "a.yaml")


def test_a_folder_is_told_with_the_files_in_it(tmp_path):
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(InputError, match=r"is a folder, not a pipeline file\. In it: a\.yaml"):
        read_source(tmp_path)


def test_a_file_too_large_to_be_a_pipeline_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InputError, match="is larger than 1 MiB; a pipeline file is a page of YAML"):
        read_source(tmp_path / "model.safetensors")


def test_an_override_reaches_sections_and_steps_by_name_or_index():
    changed, replaced = apply_overrides(
        DATA,
        ["seed=3", "steps.recover.tokens=1M", "steps.0.bits=4", "profile.repeats=2", "evaluate.tasks=[a, b]"],
    )
    assert changed == {
        "seed": 3,
        "model": "demo",
        "evaluate": {"samples": 10, "tasks": ["a", "b"]},
        "steps": [{"name": "narrow", "bits": 4}, {"name": "recover", "tokens": "1M"}],
        "profile": {"repeats": 2},
    }
    assert replaced["steps", 1, "tokens"] == "steps.recover.tokens=1M"


def test_an_override_leaves_the_data_it_was_given_alone():
    apply_overrides(DATA, ["evaluate.samples=1", "steps.narrow.name=b"])
    assert DATA["evaluate"] == {"samples": 10}
    assert DATA["steps"][0] == {"name": "narrow"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE, such as steps.recover.tokens=1M"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("steps.recovr.tokens=1",
         "--set steps.recovr.tokens=1: steps has no 'recovr'; did you mean 'recover'? Allowed: narrow, recover, 0"),
        ("steps.2.tokens=1", "--set steps.2.tokens=1: steps has no '2'. Allowed: narrow, recover, 0, 1"),
        ("seed.x=1", "--set seed.x=1: seed is the number 0 and holds no 'x'"),
        ("model.path=m", "--set model.path=m: model is the text 'demo' and holds no 'path'"),
        ("seed=[1", "--set seed=[1: a list or mapping that was opened with '[' or '{' is not closed"),
    ],
)  # fmt: skip
def test_an_override_that_leads_nowhere_is_told_what_there_is(override, message):
    with pytest.raises(InputError) as raised:
        apply_overrides(DATA, [override])
    assert str(raised.value).startswith(message)


def test_a_later_override_wins_and_is_the_place_of_what_it_covers(read):
    source = read("evaluate: {samples: 1}\n").override(["evaluate.samples=2", "evaluate={samples: 3}"])
    assert source.data == {"evaluate": {"samples": 3}}
    assert source.where(("evaluate", "samples")) == "--set evaluate={samples: 3}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "true"),
        (3, "the number 3"),
        ("a", "the text 'a'"),
        ([], "a list"),
        ({}, "a mapping"),
    ],
)
def test_values_are_described_in_plain_words(value, words):
    assert describe(value) == words


def test_long_text_is_described_by_its_beginning():
    assert describe("x" * 100) == f"the text '{'x' * 57}...'"
