from itertools import islice

import pytest
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

from compress.data import tokenizer, world
from tests.fakes import FakeContext

AWKWARD = "Mira  lives in Arlen.\n12 + 3 = 15\tünï 東京 🙂"


@pytest.fixture(params=["demo_tokenizer", "byte_tokenizer"])
def folder(request):
    return request.getfixturevalue(request.param).path


def test_plain_loading_turns_any_text_into_ids_and_back(folder):
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = loaded(AWKWARD)["input_ids"]
    assert ids[0] == loaded.bos_token_id == 0
    assert (loaded.eos_token_id, loaded.pad_token_id) == (1, 2)
    assert loaded.decode(ids, skip_special_tokens=True) == AWKWARD


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config])
def test_it_keeps_its_ids_beside_the_config_of_a_family_with_a_tokenizer_of_its_own(folder, config, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config().save_pretrained(tmp_path)
    loaded, plain = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == plain.get_vocab()
    assert loaded.decode(loaded(AWKWARD)["input_ids"], skip_special_tokens=True) == AWKWARD


@pytest.mark.parametrize("kind", ["demo", "bytes"])
def test_the_same_settings_give_the_same_bytes(kind, tmp_path):
    for name in ("one", "two"):
        tokenizer.run(None, tokenizer.Config(kind=kind), FakeContext(tmp_path / name))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_byte_tokenizer_gives_one_id_a_byte(byte_tokenizer):
    loaded = AutoTokenizer.from_pretrained(byte_tokenizer.path)
    assert len(loaded) == 259
    assert len(loaded(AWKWARD, add_special_tokens=False)["input_ids"]) == len(AWKWARD.encode())


def test_the_demo_tokenizer_has_the_asked_vocabulary_and_shortens_the_world(demo_tokenizer):
    loaded = AutoTokenizer.from_pretrained(demo_tokenizer.path)
    text = " ".join(islice(world.documents("heldout", 0), 50))
    assert len(loaded) <= 1024
    assert len(loaded(text)["input_ids"]) < len(text) / 3
