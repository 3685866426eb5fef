"""Special tokens that nothing uses go before any word does."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.models import tokenizer_json
from compress.models.checkpoint import load_model, load_tokenizer, quiet
from compress.models.spec import read_spec
from compress.models.token_map import read_kept
from compress.prune.unused_specials import unused_specials
from compress.records import Artifact
from tests.models.small_tokenizers import HELD_OUT, TEXTS, write
from tests.models.tiny import tiny_model
from tests.prune.test_vocab import pruned

NUM_UNUSED = 200
UNUSED = [f"<unused{number}>" for number in range(NUM_UNUSED)]
USED = ["<|role|>", "<|template|>", "<|stop|>", "<|config|>", "<|extra|>", "<|spoken|>"]


def with_unused_specials(folder, listed: bool = False) -> Artifact:
    """A tiny model whose tokenizer has many special tokens, some of them named somewhere, each in another way."""
    write("byte_level", folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([*UNUSED[:100], *USED, *UNUSED[100:]], special_tokens=True)
    ids = tokenizer.get_vocab()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "<|role|>", "extra_special_tokens": {"extra_token": "<|extra|>"}}
    if listed:
        settings["added_tokens_decoder"] = {
            str(ids[token]): {"content": token, "special": True} for token in ids if token.startswith("<")
        }
        (folder / "added_tokens.json").write_text(json.dumps({t: ids[t] for t in [*UNUSED, *USED]}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ '<|template|>' }}{{ messages[0].content }}")
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=ids["<|config|>"])
    with quiet():
        model.save_pretrained(folder)
    generation = {"eos_token_id": ids["<|config|>"], "stop_strings": ["<|stop|>"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))


def tokens_of(folder) -> set[str]:
    return set(load_tokenizer(folder).get_vocab())


@pytest.mark.parametrize(
    "listed", [False, True], ids=["tokenizer.json alone", "listed as added tokens as well"]
)
def test_only_special_tokens_that_something_names_stay(listed, tmp_path):
    start = with_unused_specials(tmp_path / "parent", listed)
    texts = (*TEXTS[:40], "He said <|spoken|> to them.")
    words = len(load_tokenizer(start.path)) - NUM_UNUSED
    pruned(start, tmp_path / "pruned", texts=texts, target={"tokens": words}, align=1)
    after = tokens_of(tmp_path / "pruned")
    assert not after & set(UNUSED)
    # Not one word went for them: everything else is still there.
    assert after == tokens_of(start.path) - set(UNUSED)


def test_all_special_tokens_stay_where_asked_for(tmp_path):
    start = with_unused_specials(tmp_path / "parent")
    pruned(start, tmp_path / "pruned", target={"tokens": 550}, align=1, keep_special="all")
    assert {*UNUSED, *USED} <= tokens_of(tmp_path / "pruned")


def test_an_unused_special_token_named_in_keep_stays(tmp_path):
    start = with_unused_specials(tmp_path / "parent")
    pruned(start, tmp_path / "pruned", target={"tokens": 550}, align=1, keep=("<unused7>",))
    assert tokens_of(tmp_path / "pruned") & {*UNUSED, *USED} == {"<unused7>", *USED} - {"<|spoken|>"}


def test_without_unused_specials_plain_transformers_reads_text_as_before(tmp_path):
    start = with_unused_specials(tmp_path / "parent", listed=True)
    pruned(start, tmp_path / "pruned", texts=TEXTS, target={"tokens": 608}, align=1)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (start.path, tmp_path / "pruned"))
    kept = read_kept(tmp_path / "pruned")
    same = [text for text in HELD_OUT if set(before(text)["input_ids"]) <= set(kept)]
    assert len(same) > 20
    for text in same:
        assert [kept[index] for index in after(text)["input_ids"]] == before(text)["input_ids"]
    assert after.decode(after("a <unused7> b")["input_ids"]) == "a <unused7> b"  # plain text by now
    assert after.eos_token_id is not None and after.convert_ids_to_tokens(after.pad_token_id) == "<|role|>"
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert after.convert_ids_to_tokens(model.config.eos_token_id) == "<|config|>"
    assert load_model(tmp_path / "pruned").config.vocab_size == 608


@pytest.mark.parametrize(
    "template",
    [
        {"chat_template": "<unused3>"},
        {
            "chat_template": [
                {"name": "default", "template": "x"},
                {"name": "tools", "template": "a<unused3>b"},
            ]
        },
    ],
    ids=["one", "several"],
)
def test_templates_in_the_tokenizers_settings_count(template, tmp_path):
    start = with_unused_specials(tmp_path / "parent")
    path = start.path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | template))
    content = tokenizer_json.read(start.path)
    ids = tokenizer_json.token_ids(content)
    assert ids["<unused3>"] not in unused_specials(start.path, content, [])
    assert ids["<unused4>"] in unused_specials(start.path, content, [])
    (start.path / "additional_chat_templates").mkdir()
    (start.path / "additional_chat_templates/tools.jinja").write_text("{{ '<unused4>' }}")
    assert ids["<unused4>"] not in unused_specials(start.path, content, [])
