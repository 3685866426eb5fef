import json

import pytest
from transformers import AutoTokenizer

from compress.data import pack
from compress.data.tokens import PackedTokens
from compress.errors import InputError
from compress.records import ModelSpec
from tests.fakes import FakeContext

POEM = "one two three\nfour\n\nfive six\n\n\nseven"


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM)
    return {"source": "text", "settings": {"paths": [str(path)]}}


def test_documents_are_joined_by_bos_and_eos_and_come_back(byte_tokenizer, context, poem):
    outcome = pack.run(byte_tokenizer, pack.Config(**poem, sequence_length=4), context)
    packed = PackedTokens.open(context.folder)
    text = AutoTokenizer.from_pretrained(byte_tokenizer.path).decode(
        packed.rows(0, packed.num_sequences).flatten()
    )
    whole = "<s>one two three\nfour</s><s>five six</s><s>seven</s>"
    assert whole.startswith(text)
    assert outcome.facts["documents"] == 3
    assert outcome.facts["tokens"] == packed.num_sequences * 4 == 36
    assert outcome.facts["text_bytes"] == round(31 * 36 / 37)


def test_the_asked_rows_are_made_and_no_more(byte_tokenizer, tmp_path):
    for asked in ({"samples": 5}, {"tokens": 5 * 16 - 3}, {"samples": 5, "tokens": 1000}):
        context = FakeContext(tmp_path / str(asked))
        pack.run(byte_tokenizer, pack.Config(source="demo", sequence_length=16, **asked), context)
        assert PackedTokens.open(context.folder).num_sequences == 5
        assert (context.folder / "tokens.bin").stat().st_size == 5 * 16 * 2
        assert context.warnings == []


def test_the_same_seed_packs_the_same_bytes(demo_tokenizer, tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        context = FakeContext(tmp_path / name, seed=seed)
        pack.run(demo_tokenizer, pack.Config(source="demo", sequence_length=32, samples=50), context)
        made.append((context.folder / "tokens.bin").read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_short_source_warns_and_is_used(byte_tokenizer, context, poem):
    pack.run(byte_tokenizer, pack.Config(**poem, sequence_length=4, samples=100), context)
    assert PackedTokens.open(context.folder).num_sequences == 9
    assert "fills only 9 of 100 rows" in context.warnings[0]


def test_too_little_text_for_one_row_is_refused(byte_tokenizer, context, poem):
    with pytest.raises(InputError, match="has 37 tokens: too little for one row of 64"):
        pack.run(byte_tokenizer, pack.Config(**poem, sequence_length=64), context)
    assert not (context.folder / "tokens.json").exists()


def test_an_endless_source_needs_a_number(byte_tokenizer, context):
    with pytest.raises(InputError, match="never ends: give `samples` or `tokens`"):
        pack.run(byte_tokenizer, pack.Config(source="demo", sequence_length=16), context)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_naming_both_sizes(demo_tokenizer, context):
    spec = ModelSpec(config={"vocab_size": 300}, tensors={}, num_parameters=0)
    parent = demo_tokenizer.model_copy(update={"kind": "hf", "spec": spec})
    with pytest.raises(InputError, match=r"has \d+ ids .* the model's vocabulary 300"):
        pack.run(parent, pack.Config(source="demo", sequence_length=16, samples=10), context)


def test_a_folder_without_a_tokenizer_is_refused(demo_tokenizer, context, tmp_path):
    parent = demo_tokenizer.model_copy(update={"path": tmp_path})
    with pytest.raises(InputError, match="no tokenizer can be loaded"):
        pack.run(parent, pack.Config(source="demo", sequence_length=16, samples=10), context)


def test_a_tokenizer_without_marks_joins_texts_bare(byte_tokenizer, context, tmp_path, poem):
    for file in byte_tokenizer.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    parent = byte_tokenizer.model_copy(update={"path": tmp_path})
    pack.run(parent, pack.Config(**poem, sequence_length=4), context)
    assert 0 not in PackedTokens.open(context.folder).rows(0, 8)
