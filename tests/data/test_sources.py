import subprocess
import sys

import pytest
from datasets import Dataset
from pydantic import ValidationError

from compress import plugins
from compress.data.sources import demo, hf, jsonl, text
from compress.errors import InputError

SOURCES = plugins.available("data.sources")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_keeps_the_contract(name):
    source = plugins.load("data.sources", name)
    assert issubclass(source.Config, plugins.StepConfig)
    assert isinstance(source.VERSION, int)
    assert callable(source.texts) and callable(source.digest)
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
    assert list(text.texts(config, 0)) == ["# Title\nline", "  indented\nmore"]


def test_each_file_can_be_a_document(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{name}\n\n{name}")
    config = text.Config(paths=(str(tmp_path / "b"), str(tmp_path / "a")), documents="files")
    assert list(text.texts(config, 0)) == ["b\n\nb", "a\n\na"]


def test_a_digest_follows_the_content_and_not_the_path(tmp_path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    a, b, c = (text.digest(text.Config(paths=(str(tmp_path / name),))) for name in "abc")
    assert a == b != c


def test_a_missing_file_is_named(tmp_path):
    missing = str(tmp_path / "nothing.txt")
    for source in (text, jsonl):
        with pytest.raises(InputError, match=r"nothing\.txt"):
            next(source.texts(source.Config(paths=(missing,)), 0))
        with pytest.raises(InputError, match=r"nothing\.txt"):
            source.digest(source.Config(paths=(missing,)))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        next(text.texts(text.Config(paths=(str(tmp_path / "latin"),)), 0))


def test_json_lines_yield_their_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two", "id": 2}\n')
    assert list(jsonl.texts(jsonl.Config(paths=(str(path),), field="body"), 0)) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not JSON"),
        ("[1]", r"a\.jsonl:2: not a JSON object but list"),
        ('{"txt": "x"}', r"no field 'text'; did you mean 'txt'"),
        ('{"text": 3}', r"holds no text but int"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        list(jsonl.texts(jsonl.Config(paths=(str(path),)), 0))


def test_the_demo_source_tells_its_splits_apart():
    digests = {demo.digest(demo.Config(split=split)) for split in ("train", "calibration", "heldout")}
    assert len(digests) == 3
    with pytest.raises(ValidationError):
        demo.Config(split="test")


def test_a_full_commit_identifies_a_hub_dataset_without_a_network():
    config = hf.Config(id="owner/name", revision="0" * 40)
    assert hf.digest(config) == f"owner/name@{'0' * 40}:None:train:text"


def test_a_hub_out_of_reach_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="give a full commit hash as `revision`"):
        hf.digest(hf.Config(id="owner/name"))


def test_a_dataset_out_of_reach_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", _unreachable)
    with pytest.raises(InputError, match="the dataset 'owner/name' cannot be read: no route"):
        next(hf.texts(hf.Config(id="owner/name", revision="0" * 40), 0))


def test_a_hub_dataset_yields_its_column_in_a_seeded_order(monkeypatch):
    rows = Dataset.from_dict({"body": [str(i) for i in range(20)]})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    config = hf.Config(id="owner/name", revision="0" * 40, field="body")
    drawn = list(hf.texts(config, seed=1))
    assert sorted(drawn, key=int) == [str(i) for i in range(20)] != drawn
    assert drawn == list(hf.texts(config, seed=1)) != list(hf.texts(config, seed=2))
    assert next(hf.texts(config.model_copy(update={"shuffle": False}), seed=1)) == "0"
    with pytest.raises(InputError, match=r"no column 'text'.*There are: body"):
        next(hf.texts(config.model_copy(update={"field": "text"}), seed=1))


def _unreachable(*args, **kwargs):
    raise ConnectionError("no route\nto the hub")
