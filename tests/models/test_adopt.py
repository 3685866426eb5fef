"""A checkpoint and a tokenizer from two folders."""

import json

from compress.models import adopt
from compress.models.spec import read_spec
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.tiny import write_tiny


def test_the_users_own_tokenizer_file_is_left_as_it_is(tmp_path, monkeypatch):
    checkpoint = write_tiny(tmp_path / "checkpoint", "llama")
    (checkpoint / "tokenizer.json").write_text('"of the checkpoint"')
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text('"the one asked for"')
    monkeypatch.setattr("compress.models.checkpoint.load_tokenizer", lambda folder: range(259))
    context = FakeContext(
        tmp_path / "made", inputs={"tokenizer": Artifact(key="t", kind="tokenizer", path=tokenizer)}
    )
    parent = Artifact(key="p", kind="hf", path=checkpoint, spec=read_spec(checkpoint))
    adopt.run(parent, adopt.Config(), context)
    assert json.loads((tmp_path / "made" / "tokenizer.json").read_text()) == "the one asked for"
    assert json.loads((checkpoint / "tokenizer.json").read_text()) == "of the checkpoint"
    assert read_spec(tmp_path / "made") == parent.spec
