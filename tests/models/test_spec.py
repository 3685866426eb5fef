import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import InputError
from compress.models.checkpoint import load_model, load_tokenizers, outline_model, save_model
from compress.models.shards import read_shards, write_shards
from compress.models.spec import check_tokenizer, copy_tokenizer, read_spec, stored_dtype
from tests.models.tiny import VARIANTS, tiny_model, token_ids, variant_name, write_tiny
from tests.train.inputs import parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy that may be damaged."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    return write_tiny(tmp_path, "llama", shard="200KB")


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
def test_the_spec_is_what_the_files_hold(family, changes, tmp_path):
    folder = write_tiny(tmp_path, family, **changes)
    spec = read_spec(folder)
    tensors = load_file(folder / "model.safetensors")
    assert {name: t.shape for name, t in spec.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert spec.num_parameters == sum(t.numel() for t in tensors.values())
    assert spec.weight_bytes == sum(t.nbytes for t in tensors.values())
    assert stored_dtype(spec) == "F32"


def test_shards_are_read_as_one_model(sharded, checkpoint):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert read_spec(sharded).tensors == read_spec(checkpoint).tensors


def test_files_written_piecewise_are_byte_for_byte_those_of_safetensors(sharded, tmp_path_factory):
    target = tmp_path_factory.mktemp("again")
    tensors = {name: t for file in sharded.glob("*.safetensors") for name, t in load_file(file).items()}
    write_shards(target, read_shards(sharded), lambda name: tensors[name].numpy().tobytes())
    for file in target.glob("*.safetensors"):
        assert file.read_bytes() == (sharded / file.name).read_bytes()
    written, original = (
        json.loads((f / "model.safetensors.index.json").read_text()) for f in (target, sharded)
    )
    assert written["weight_map"] == original["weight_map"]
    assert written["metadata"]["total_size"] == original["metadata"]["total_size"]


def test_rotary_tables_and_copies_of_a_tied_head_are_tolerated(tmp_path):
    folder = write_tiny(tmp_path, "qwen3", tie_word_embeddings=True)
    clean = read_spec(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert read_spec(folder).num_parameters == clean.num_parameters
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


OLD_EXTRAS = [
    ("gpt2", {"lm_head.weight": "transformer.wte.weight", "transformer.h.0.attn.bias": None}),
    ("gpt_neox", {f"gpt_neox.layers.0.attention.{name}": None for name in ("bias", "masked_bias")}),
    ("gemma", {"lm_head.weight": "model.embed_tokens.weight"}),
    ("bert", {"cls.predictions.decoder.bias": "cls.predictions.bias", "bert.embeddings.position_ids": None}),
    ("roberta", {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight"}),
    ("distilbert", {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}),
]


@pytest.mark.parametrize(("family", "extras"), OLD_EXTRAS, ids=variant_name)
def test_what_old_exporters_stored_besides_is_tolerated(family, extras, tmp_path):
    folder = write_tiny(tmp_path, family)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("tie_word_embeddings") == (family != "gpt_neox")  # transformers' default
    (folder / "config.json").write_text(json.dumps(config))
    clean, expected = read_spec(folder), load_model(folder)(token_ids()).logits
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[copy].clone() if copy else torch.ones(1) for name, copy in extras.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert read_spec(folder).num_parameters == clean.num_parameters
    assert torch.equal(load_model(folder)(token_ids()).logits, expected)


def test_names_of_other_versions_are_explained(tmp_path):
    for family, auto, rename in (
        ("gpt2", "AutoModelForCausalLM", lambda name: name.removeprefix("transformer.")),
        ("bert", "AutoModelForMaskedLM", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")),
    ):
        folder = write_tiny(tmp_path / family, family)
        tensors = load_file(folder / "model.safetensors")
        save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
        with pytest.raises(InputError, match=rf"load and save it once, with transformers' {auto}"):
            read_spec(folder)


def test_a_tied_head_that_differs_is_refused(tmp_path):
    folder = write_tiny(tmp_path, "qwen3", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="set tie_word_embeddings to false"):
        load_model(folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def garble(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 20) + b"x" * 20)


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def only_gguf(folder):
    (folder / "model.safetensors").rename(folder / "model.gguf")


def only_adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def list_config(folder):
    (folder / "config.json").write_text("[]")


def change(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


def integers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated.*copy it again"),
        (truncate_header, "is truncated.*copy it again"),
        (garble, "no valid safetensors header"),
        (only_pickles, "pickles, which can run code"),
        (no_weights, "holds no weights: neither model.safetensors"),
        (only_gguf, "holds a GGUF file"),
        (only_adapter, "only an adapter"),
        (no_config, "it has no config.json"),
        (broken_config, "config.json is not valid JSON"),
        (list_config, "must hold a JSON object"),
        (change(num_hidden_layers=5), "lacks tensors its config.json implies: model.layers.4"),
        (change(num_hidden_layers=3), "does not imply: model.layers.3.* and 6 more"),
        (change(intermediate_size=128), r"is \[192, 64\] instead of \[128, 64\]"),
        (integers, "not floating point"),
    ],
)
def test_a_damaged_checkpoint_is_explained(copied, damage, message):
    damage(copied)
    with pytest.raises(InputError, match=message):
        read_spec(copied)


def test_a_missing_shard_is_named(sharded):
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(InputError, match=r"1 of 5 weight files are missing \(model-00002"):
        read_spec(sharded)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"model.norm.weight": "../elsewhere.safetensors"}, "outside its folder"),
        ([], "no valid safetensors index"),
    ],
)
def test_an_index_is_not_trusted(sharded, weight_map, message):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        read_spec(sharded)


def test_an_index_that_promises_too_much_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"its files do not hold \(extra"):
        read_spec(sharded)


def test_a_folder_that_is_none_is_explained(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_spec(tmp_path / "nowhere")
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(InputError, match="GGUF file is no Hugging Face checkpoint"):
        read_spec(tmp_path / "model.gguf")


def test_packed_weights_count_as_what_they_hold(copied, checkpoint):
    tensors = load_file(copied / "model.safetensors")
    rows, columns = tensors.pop("lm_head.weight").shape
    tensors["lm_head.weight_packed"] = torch.zeros(rows, columns // 8, dtype=torch.int32)
    save_file(tensors, copied / "model.safetensors")
    change(quantization_config={"quant_method": "compressed-tensors"})(copied)
    assert read_spec(copied).num_parameters == read_spec(checkpoint).num_parameters


def test_an_unknown_architecture_still_has_a_size(copied, checkpoint):
    change(model_type="unheard")(copied)
    assert read_spec(copied).num_parameters == read_spec(checkpoint).num_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_saving_and_loading_keeps_every_bit(dtype, tmp_path):
    model = tiny_model("qwen2").to(dtype)  # this also rounds the rotary table, which is never stored
    save_model(model, tmp_path / "a", like=tmp_path)
    again = load_model(tmp_path / "a")
    assert again.dtype == dtype and not again.training
    assert again.config.dtype == dtype
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    if dtype is torch.float32:
        assert torch.equal(model(token_ids()).logits, again(token_ids()).logits)
    assert load_model(tmp_path / "a", dtype=torch.float64).dtype == torch.float64


def parts(model):
    """Names that share a tensor, and its shape and dtype, of all parameters and buffers."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    by_tensor = {}
    for name, tensor in named:
        by_tensor.setdefault(tensor, []).append(name)
    return [(names, tensor.shape, tensor.dtype) for tensor, names in by_tensor.items()]


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
def test_an_outline_is_the_model_without_its_weights(family, changes, tmp_path, monkeypatch):
    whole = load_model(write_tiny(tmp_path, family, **changes), dtype=torch.bfloat16)
    monkeypatch.setattr("transformers.modeling_utils.safe_open", None)  # nothing is read
    outline = outline_model(tmp_path, dtype=torch.bfloat16)
    assert parts(outline) == parts(whole)
    assert {p.device.type for p in outline.parameters()} == {"meta"} and not outline.training
    for name, buffer in whole.named_buffers():
        assert torch.equal(outline.get_buffer(name), buffer)


def test_the_tokenizer_is_copied_whole_and_alone(tmp_path, checkpoint):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "merges.txt",
        "chat_template.jinja",
        "config.json",
    ):
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert {f.name for f in target.iterdir()} == {f.name for f in source.iterdir()} - {"config.json"}


def test_a_tokenizer_must_fit_the_embedding(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer.json"):
        check_tokenizer(tmp_path, 10)
    vocab = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 10}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    check_tokenizer(tmp_path, 11)
    with pytest.raises(InputError, match="largest id is 10, and the model has 10"):
        check_tokenizer(tmp_path, 10)


@pytest.mark.parametrize(
    "change", ["nothing", "a token", "a file more", "the model's type", "a chat template"]
)
def test_a_tokenizer_is_loaded_once_where_it_is_the_same(tmp_path, change):
    first, second = (parent(tmp_path / name).path for name in ("first", "second"))
    text = (second / "tokenizer.json").read_text()
    if change == "a token":
        (second / "tokenizer.json").write_text(text.replace("<pad>", "<gap>"))
        assert "<pad>" in text
    elif change == "a file more":
        (second / "added_tokens.json").write_text("{}")
    elif change == "the model's type":
        config = json.loads((second / "config.json").read_text())
        (second / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    elif change == "a chat template":
        (second / "chat_template.jinja").write_text("{{ messages }}")
    one, other = load_tokenizers(first, second)
    assert (one is other) == (change == "nothing")
