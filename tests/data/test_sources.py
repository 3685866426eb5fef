import json
import subprocess
import sys

import pyarrow
import pytest
from datasets import Dataset
from pyarrow.parquet import write_table
from pydantic import ValidationError

from compress import plugins
from compress.data.conversation import Conversation
from compress.data.sources import demo, hf, is_endless, jsonl, mixture, parquet, text
from compress.errors import InputError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

SOURCES = plugins.available("data.sources")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_keeps_the_contract(name):
    source = plugins.load("data.sources", name)
    assert issubclass(source.Config, plugins.StepConfig)
    assert isinstance(source.VERSION, int)
    assert callable(source.digest)
    assert hasattr(source, "documents") != hasattr(source, "parts")
    for field, info in source.Config.model_fields.items():
        assert info.description, f"{name}.{field} is not documented"


def test_sources_import_neither_torch_nor_datasets():
    code = (
        "import sys; from compress import plugins; [plugins.load('data.sources', n) for n in sys.argv[1:]]; "
    )
    code += "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code, *SOURCES], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_misspelled_source_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'jsonl'"):
        plugins.load("data.sources", "json")


def test_blank_lines_part_documents(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# Title\nline\n \n\n  indented\nmore\n")
    config = text.Config(paths=(str(path),))
    assert list(text.documents(config, 0)) == ["# Title\nline", "  indented\nmore"]


def test_each_file_can_be_a_document(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{name}\n\n{name}")
    config = text.Config(paths=(str(tmp_path / "b"), str(tmp_path / "a")), documents="files")
    assert list(text.documents(config, 0)) == ["b\n\nb", "a\n\na"]


def test_a_split_holds_every_tenth_document_out_and_is_another_text(tmp_path, memo):
    path = tmp_path / "a"
    path.write_text("\n\n".join(f"text {number}" for number in range(25)))
    whole, train, heldout = (text.Config(paths=(str(path),), split=s) for s in ("all", "train", "heldout"))
    held = list(text.documents(heldout, 0))
    assert held == ["text 9", "text 19"]
    assert [*text.documents(train, 0)] == [each for each in text.documents(whole, 0) if each not in held]
    assert len({text.digest(config, memo) for config in (whole, train, heldout)}) == 3


def test_a_digest_follows_the_content_and_not_the_path(tmp_path, memo):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    a, b, c = (text.digest(text.Config(paths=(str(tmp_path / name),)), memo) for name in "abc")
    assert a == b != c


def test_a_missing_file_is_named(tmp_path, memo):
    missing = str(tmp_path / "nothing.txt")
    for source in (text, jsonl, parquet):
        with pytest.raises(InputError, match=r"nothing\.txt"):
            next(source.documents(source.Config(paths=(missing,)), 0))
        with pytest.raises(InputError, match=r"nothing\.txt"):
            source.digest(source.Config(paths=(missing,)), memo)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        next(text.documents(text.Config(paths=(str(tmp_path / "latin"),)), 0))


def test_json_lines_yield_their_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two", "id": 2}\n')
    assert list(jsonl.documents(jsonl.Config(paths=(str(path),), field="body"), 0)) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not JSON"),
        ("[1]", r"a\.jsonl:2: not a JSON object but list"),
        ('{"txt": "x"}', r"no field 'text'; did you mean 'txt'"),
        (r'{"text": "\ud83d"}', r"a\.jsonl:2: the field 'text': .*half a character"),
        (
            r'{"text": [{"role": "user", "content": "\ud83d"}]}',
            r"a\.jsonl:2: the field 'text', message 1: .*half a character",
        ),
        ('{"text": 3}', r"a\.jsonl:2: the field 'text' holds neither text nor a list of messages but int"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        list(jsonl.documents(jsonl.Config(paths=(str(path),)), 0))


def test_the_demo_source_tells_its_splits_apart(memo):
    digests = {demo.digest(demo.Config(split=split), memo) for split in ("train", "calibration", "heldout")}
    assert len(digests) == 3
    with pytest.raises(ValidationError):
        demo.Config(split="test")


def test_a_full_commit_identifies_a_hub_dataset_without_a_network(memo):
    config = hf.Config(id="owner/name", revision="0" * 40)
    assert hf.digest(config, memo) == f"owner/name@{'0' * 40}:None:train:text:shuffled whole"


def test_a_hub_out_of_reach_is_a_clear_error(monkeypatch, memo):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="give a full commit hash as `revision`"):
        hf.digest(hf.Config(id="owner/name"), memo)


def test_a_dataset_out_of_reach_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", _unreachable)
    with pytest.raises(InputError, match=r"the dataset 'owner/name' cannot be read: no route"):
        next(hf.documents(hf.Config(id="owner/name", revision="0" * 40), 0))


def test_a_hub_dataset_yields_its_column_in_a_seeded_order(monkeypatch):
    rows = Dataset.from_dict({"body": [str(i) for i in range(20)]})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    config = hf.Config(id="owner/name", revision="0" * 40, field="body")
    drawn = list(hf.documents(config, seed=1))
    assert sorted(drawn, key=int) == [str(i) for i in range(20)] != drawn
    assert drawn == list(hf.documents(config, seed=1)) != list(hf.documents(config, seed=2))
    assert next(hf.documents(config.model_copy(update={"shuffle": False}), seed=1)) == "0"
    with pytest.raises(InputError, match=r"no column 'text'.*There are: body"):
        next(hf.documents(config.model_copy(update={"field": "text"}), seed=1))


def _unreachable(*args, **kwargs):
    raise ConnectionError("no route\nto the hub")


def test_json_lines_and_hub_datasets_hold_conversations_too(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"said": MESSAGES}) + "\n" + json.dumps({"said": "text"}) + "\n")
    config = jsonl.Config(paths=(str(path),), field="said")
    conversation = Conversation(tuple(MESSAGES), f"{path}:1: the field 'said'")
    assert list(jsonl.documents(config, 0)) == [conversation, "text"]
    rows = Dataset.from_dict({"said": [MESSAGES]})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    (drawn,) = hf.documents(hf.Config(id="owner/name", revision="0" * 40, field="said"), 0)
    assert drawn.messages == tuple(MESSAGES)
    assert drawn.where == "the dataset 'owner/name', row 1 drawn: the column 'said'"


def table(path, **columns):
    write_table(pyarrow.table(columns), path, row_group_size=2)
    return parquet.Config(paths=(str(path),), field=next(iter(columns)))


def test_parquet_files_yield_their_column_across_row_groups(tmp_path):
    config = table(tmp_path / "a.parquet", body=[f"{i}" for i in range(5)], number=list(range(5)))
    assert list(parquet.documents(config, 0)) == ["0", "1", "2", "3", "4"]


def test_parquet_columns_hold_conversations_and_empty_keys_are_left_out(tmp_path):
    said = [MESSAGES, [{**MESSAGES[0], "name": "Mira"}, MESSAGES[1]]]
    first, second = parquet.documents(table(tmp_path / "a.parquet", said=said), 0)
    assert first.messages == tuple(MESSAGES)
    assert second.messages[0]["name"] == "Mira"


def test_a_parquet_column_that_is_not_there_names_the_nearest(tmp_path):
    config = table(tmp_path / "a.parquet", text=["x"]).model_copy(update={"field": "txt"})
    with pytest.raises(
        InputError, match=r"a\.parquet: no column 'txt'; did you mean 'text'\? There are: text"
    ):
        next(parquet.documents(config, 0))


def test_a_parquet_row_without_text_is_named(tmp_path):
    config = table(tmp_path / "a.parquet", text=["x", "y", None])
    with pytest.raises(InputError, match=r"a\.parquet, row 3: the column 'text' holds neither text nor"):
        list(parquet.documents(config, 0))


@pytest.mark.parametrize("written", ['[{"text": "x"}]', '[\n{"text": "x"}\n]', '{\n"text": "x"}'])
def test_a_file_that_is_one_list_is_told_what_lines_are(tmp_path, written):
    (tmp_path / "a.jsonl").write_text(written)
    with pytest.raises(
        InputError, match=r"a\.jsonl:1: not .*Each line is one whole object; of a file that is one list"
    ):
        next(jsonl.documents(jsonl.Config(paths=(str(tmp_path / "a.jsonl"),)), 0))


def test_nothing_is_called_as_a_file_calls_it(tmp_path):
    (tmp_path / "a.jsonl").write_text("null\n")
    with pytest.raises(InputError, match="not a JSON object but null"):
        next(jsonl.documents(jsonl.Config(paths=(str(tmp_path / "a.jsonl"),)), 0))


def test_an_id_with_a_percent_sign_breaks_no_message(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Dataset.from_dict({"100%d": [None]}))
    config = hf.Config(id="owner/50%s", revision="0" * 40, field="100%d")
    with pytest.raises(
        InputError, match=r"the dataset 'owner/50%s', row 1 drawn: the column '100%d' holds .* null"
    ):
        next(hf.documents(config, 0))


@pytest.mark.parametrize("bytes_", [b"\xed\xa0\xbd", b"\xff"], ids=["half a character", "no character"])
def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path, bytes_):
    """A writer is free to put any bytes into a column of text."""
    texts = pyarrow.array([b"fine", b"so " + bytes_], type=pyarrow.binary()).view(pyarrow.string())
    with pytest.raises(InputError, match=r"a\.parquet, row 2: the column 'text' is not UTF-8 text"):
        list(parquet.documents(table(tmp_path / "a.parquet", text=texts), 0))
    roles = pyarrow.array(["user", "user"])
    said = pyarrow.ListArray.from_arrays(
        [0, 1, 2], pyarrow.StructArray.from_arrays([roles, texts], ["role", "content"])
    )
    with pytest.raises(InputError, match=r"a\.parquet, row 2: the column 'said' is not UTF-8 text"):
        list(parquet.documents(table(tmp_path / "a.parquet", said=said), 0))


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet"):
        next(parquet.documents(parquet.Config(paths=(str(tmp_path / "a.parquet"),)), 0))


def test_a_column_is_part_of_what_parquet_and_json_lines_are_known_by(tmp_path, memo):
    config = table(tmp_path / "a.parquet", text=["x"], other=["y"])
    assert parquet.digest(config, memo) != parquet.digest(config.model_copy(update={"field": "other"}), memo)
    assert jsonl.digest(jsonl.Config(paths=config.paths), memo) != jsonl.digest(
        jsonl.Config(paths=config.paths, field="other"), memo
    )


def test_where_documents_end_is_part_of_what_text_is_known_by(tmp_path, memo):
    (tmp_path / "a").write_text("x")
    config = text.Config(paths=(str(tmp_path / "a"),))
    assert text.digest(config, memo) != text.digest(config.model_copy(update={"documents": "files"}), memo)


def test_the_order_is_part_of_what_a_hub_dataset_is_known_by(memo):
    config = hf.Config(id="owner/name", revision="0" * 40)
    ways = [{}, {"shuffle": False}, {"streaming": True}, {"streaming": True, "shuffle": False}]
    whole, as_it_is, buffered, streamed = (hf.digest(config.model_copy(update=way), memo) for way in ways)
    assert len({whole, as_it_is, buffered}) == 3
    assert streamed == as_it_is


def mixed(*parts, **settings):
    return mixture.Config.model_validate({"parts": parts, **settings})


def test_a_mixture_takes_every_other_source_with_its_settings():
    assert sorted([*mixture.SOURCES, "mixture"]) == SOURCES
    config = mixed({"source": "jsonl", "paths": ["a"], "field": "f"}, {"source": "demo", "weight": 2})
    assert isinstance(config.parts[0], jsonl.Config) and config.parts[0].field == "f"
    assert isinstance(config.parts[1], demo.Config) and config.parts[1].weight == 2
    assert mixture.Config.model_validate(config.model_dump(mode="json")) == config


def test_each_part_of_a_mixture_reads_its_source_with_a_seed_of_its_own_each_time():
    first, second = mixture.parts(mixed({"source": "demo"}, {"source": "demo", "weight": 3}), seed=1)
    assert (first.name, second.name, second.weight) == ("part 1 (demo)", "part 2 (demo)", 3)
    assert next(first.read(0)) == next(first.read(0))
    assert len({next(part.read(passes)) for part in (first, second) for passes in (0, 1)}) == 4


def test_a_mixture_ends_with_its_parts_unless_they_are_repeated(tmp_path):
    endless, ending = {"source": "demo"}, {"source": "text", "paths": ["a"]}
    assert is_endless(mixture, mixed(endless, endless))
    assert not is_endless(mixture, mixed(endless, ending))
    assert is_endless(mixture, mixed(ending, ending, on_end="repeat"))
    assert not is_endless(text, text.Config(paths=("a",)))


def test_a_mixture_is_known_by_its_parts_shares_and_end(tmp_path, memo):
    (tmp_path / "a").write_text("x")
    file = {"source": "text", "paths": [str(tmp_path / "a")]}
    configs = [
        mixed({"source": "demo"}, file),
        mixed(file, {"source": "demo"}),
        mixed({"source": "demo", "weight": 2}, file),
        mixed({"source": "demo", "split": "heldout"}, file),
        mixed({"source": "demo"}, file, on_end="repeat"),
    ]
    digests = [mixture.digest(config, memo) for config in configs]
    (tmp_path / "a").write_text("y")
    digests.append(mixture.digest(configs[0], memo))
    assert len(set(digests)) == 6


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path, memo, monkeypatch):
    (tmp_path / "a").write_text("x")
    config = text.Config(paths=(str(tmp_path / "a"),))
    first = text.digest(config, memo)
    monkeypatch.setattr("compress.digests.file_digest", lambda path: f"read anew: {path.read_text()}")
    assert text.digest(config, memo) == first
    (tmp_path / "a").write_text("other")
    assert text.digest(config, memo) != first
