"""What JSON files and headers tell is told before any work."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import InputError
from compress.models import adopt, soundness
from compress.models.soundness import check_checkpoint, check_config, check_tokenizer_fits
from compress.models.spec import copy_tokenizer, read_spec
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.tiny import write_tiny


@pytest.mark.parametrize("pad", [259, 32000, -260])
def test_a_padding_token_without_a_row_is_refused(pad):
    with pytest.raises(InputError, match=f"pad_token_id is {pad}, and the vocabulary has the ids 0 to 258"):
        check_config({"pad_token_id": pad, "vocab_size": 259})


@pytest.mark.parametrize(
    "config", [{"pad_token_id": 258}, {"pad_token_id": -1}, {"pad_token_id": None}, {}], ids=str
)
def test_any_other_is_not(config):
    check_config({"vocab_size": 259, **config})


def with_head(folder, change):
    """Write a tied model whose files hold a head too."""
    write_tiny(folder, "llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"].clone())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_checkpoint(folder, read_spec(folder))


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    with_head(tmp_path, lambda weight: weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight + 1, "lm_head.weight holds other numbers than model.embed_tokens.weight"),
        (
            lambda weight: torch.cat([weight, weight]),
            "lm_head.weight is .518, .* and model.embed_tokens.weight .259",
        ),
    ],
)
def test_another_head_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=f"ties the output head to the embedding, but {message}"):
        with_head(tmp_path, change)


def write_tokenizer(folder, num, *added):
    content = {"model": {"vocab": {f"t{i}": i for i in range(num)}}, "added_tokens": list(added)}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_tokenizer_with_ids_that_text_can_have_and_the_model_has_not_is_refused(tmp_path):
    check_tokenizer_fits(write_tokenizer(tmp_path, 10), 10)
    with pytest.raises(InputError, match="its largest id is 10, and the model has 10 embeddings"):
        check_tokenizer_fits(write_tokenizer(tmp_path, 11), 10)
    plain, image = ({"id": 10, "content": "<x>", "special": special} for special in (False, True))
    with pytest.raises(InputError, match="its largest id is 10"):
        check_tokenizer_fits(write_tokenizer(tmp_path, 10, plain), 10)
    check_tokenizer_fits(write_tokenizer(tmp_path, 10, image), 10)  # Gemma 3's text models have one


def test_sentencepiece_alone_is_refused_where_nothing_reads_it(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr(soundness, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tokenizer.model alone.*save_pretrained"):
        check_tokenizer_fits(tmp_path, 10)
    monkeypatch.setattr(soundness, "find_spec", lambda name: object())
    check_tokenizer_fits(tmp_path, 10)


def test_more_chat_templates_are_kept(tmp_path):
    write_tokenizer(tmp_path / "from", 3)
    (tmp_path / "from/additional_chat_templates").mkdir()
    (tmp_path / "from/additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    (tmp_path / "to").mkdir()
    copy_tokenizer(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to/additional_chat_templates/tools.jinja").read_text() == "{{ tools }}"


def test_a_hub_snapshots_links_lead_to_files(tmp_path, monkeypatch):
    """A snapshot holds relative links to the blobs beside it: linked as they are, they lead nowhere."""
    blobs = write_tiny(tmp_path / "blobs", "llama")
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 259)
    monkeypatch.setattr("compress.models.checkpoint.load_tokenizer", lambda folder: range(259))
    given = {"tokenizer": Artifact(key="t", kind="tokenizer", path=tokenizer)}
    context = FakeContext(tmp_path / "store" / "made", inputs=given)
    parent = Artifact(key="p", kind="hf", path=snapshot, spec=read_spec(snapshot))
    adopt.run(parent, adopt.Config(), context)
    assert read_spec(tmp_path / "store" / "made") == parent.spec


def test_a_byte_order_mark_is_no_text(tmp_path):
    from compress.data.files import read_text
    from compress.data.sources import text

    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\n\nTwo".encode())
    assert list(text.documents(text.Config(paths=(str(path),)), 0)) == ["One", "Two"]
    assert list(text.documents(text.Config(paths=(str(path),), documents="files"), 0)) == ["One\n\nTwo"]
    assert read_text(str(path)) == "One\n\nTwo"
