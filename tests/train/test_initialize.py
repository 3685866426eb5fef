import json

import pytest
import torch

from compress.data import tokenizer
from compress.errors import InputError
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.spec import read_spec
from compress.records import Artifact
from compress.train import initialize
from tests.fakes import FakeContext
from tests.models.tiny import VARIANTS, tiny_config, variant_name, write_tiny


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    context = FakeContext(tmp_path_factory.mktemp("bytes"))
    tokenizer.run(None, tokenizer.Config(kind="bytes"), context)
    return Artifact(key="t", kind="tokenizer", path=context.folder)


def made(parent, config, folder, seed=1):
    outcome = initialize.run(parent, config, FakeContext(folder, seed=seed))
    assert outcome.spec == read_spec(folder)
    return outcome.spec


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
def test_the_prediction_is_what_is_written(family, changes, byte_tokenizer, tmp_path):
    config = initialize.Config(config=tiny_config(family, **changes), dtype="BF16")
    realized, predicted = made(byte_tokenizer, config, tmp_path), initialize.predict(None, config)
    assert realized.tensors == predicted.tensors and realized.size == predicted.size
    assert load_model(tmp_path).config.vocab_size >= len(load_tokenizer(tmp_path))


def test_the_seed_decides_the_weights(byte_tokenizer, tmp_path):
    config = initialize.Config(config=tiny_config("llama"))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made(byte_tokenizer, config, tmp_path / name, seed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_tokenizers_special_ids_are_used_where_none_are_given(byte_tokenizer, tmp_path):
    made(byte_tokenizer, initialize.Config(config=tiny_config("llama", eos_token_id=7)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 7, 2)


def test_a_model_as_parent_gives_its_own_shape_fresh_weights(byte_tokenizer, tmp_path):
    folder = write_tiny(tmp_path / "parent", "qwen3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((byte_tokenizer.path / name).read_bytes())
    parent = Artifact(key="p", kind="hf", path=folder, spec=read_spec(folder))
    realized = made(parent, initialize.Config(), tmp_path / "fresh")
    assert realized.tensors == parent.spec.tensors
    old, new = load_model(folder), load_model(tmp_path / "fresh")
    assert not torch.equal(old.lm_head.weight, new.lm_head.weight)
    assert torch.equal(new.model.norm.weight, torch.ones(64))


def test_mistakes_are_explained(byte_tokenizer, tmp_path):
    with pytest.raises(InputError, match="needs a `config`"):
        initialize.predict(None, initialize.Config())
    small = initialize.Config(config=tiny_config("llama", vocab_size=100))
    with pytest.raises(InputError, match="does not fit the model: its largest id is 258"):
        initialize.run(byte_tokenizer, small, FakeContext(tmp_path / "small"))
    odd = initialize.Config(config=tiny_config("llama", hidden_act=5))
    with pytest.raises(InputError, match="transformers refuses"):
        initialize.run(byte_tokenizer, odd, FakeContext(tmp_path / "odd"))
