import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress import plugins
from compress.errors import InputError, StepFailed
from compress.models.checkpoint import load_model, load_tokenizer, quiet
from compress.models.family import option
from compress.models.spec import read_spec
from compress.models.token_map import read_kept
from compress.prune import vocab
from compress.prune.vocab_choice import Vocabulary, choose
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.small_tokenizers import HELD_OUT, KINDS, TEXTS, UNICODE, write
from tests.models.tiny import FAMILIES, tiny_model

DECODERS = [name for name in FAMILIES if not option(plugins.load("models.families", name), "ENCODER")]
SENTENCES = [f"{sentence}." for text in HELD_OUT[:20] for sentence in text.split(". ")]


def parent(
    folder: Path, kind: str = "demo", family: str = "llama", padding: int = 64, dtype=torch.float64, **changes
) -> Artifact:
    """A tiny model with one of the small tokenizers, and rows no token has."""
    write(kind, folder)
    tokenizer = load_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = tiny_model(family, **{"vocab_size": len(tokenizer) + padding, **ids, **changes}).to(dtype)
    with quiet():
        model.save_pretrained(folder)
    return Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))


def corpus(folder: Path, tokenizer_of: Path, texts=tuple(TEXTS[:100])) -> Artifact:
    tokenizer = load_tokenizer(tokenizer_of)
    ids = [index for row in tokenizer(list(texts))["input_ids"] for index in row]
    folder.mkdir(parents=True, exist_ok=True)
    np.array(ids, dtype="<u2").tofile(folder / "tokens.bin")
    facts = {"num_sequences": 1, "sequence_length": len(ids), "dtype": "<u2"}
    (folder / "tokens.json").write_text(json.dumps(facts))
    return Artifact(key="corpus", kind="tokens", path=folder)


def pruned(start: Artifact, folder: Path, texts=tuple(TEXTS[:100]), **settings):
    """Run the step on a corpus of `texts`; return its outcome, its settings and its context."""
    config = vocab.Config(**settings)
    context = FakeContext(folder, inputs={"corpus": corpus(folder.with_name("corpus"), start.path, texts)})
    return vocab.run(start, config, context), config, context


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = load_model(folder, dtype=torch.float64)
    model.set_experts_implementation("eager")  # the grouped product has no fp64
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_kept_tokens_is_cut_as_before_and_any_text_can_be_read(kind, tmp_path):
    start = parent(tmp_path / "parent", kind)
    outcome, *_ = pruned(start, tmp_path / "pruned", target={"tokens": "75%"})
    before, after = load_tokenizer(start.path), load_tokenizer(tmp_path / "pruned")
    kept = read_kept(tmp_path / "pruned")
    assert len(after) <= len(kept) == outcome.spec.config["vocab_size"] < len(before)
    same = 0
    for text in [*SENTENCES, UNICODE]:
        old, new = before(text)["input_ids"], after(text)["input_ids"]
        assert after.decode(new) == before.decode(old)
        if set(old) <= set(kept):
            same += 1
            assert [kept[index] for index in new] == old
    assert same > 20


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_the_parents_of_the_tokens_that_stay(family, tied, tmp_path):
    start = parent(tmp_path / "parent", family=family, tie_word_embeddings=tied)
    outcome, config, _ = pruned(start, tmp_path / "pruned", target={"tokens": 560})
    predicted = vocab.predict(start.spec, config)
    assert outcome.spec.tensors == predicted.tensors and outcome.spec.size == predicted.size
    kept = read_kept(tmp_path / "pruned")
    before, after = load_tokenizer(start.path), load_tokenizer(tmp_path / "pruned")
    text = next(text for text in SENTENCES if set(before(text)["input_ids"]) <= set(kept))
    old, new = before(text)["input_ids"], after(text)["input_ids"]
    ours, theirs = logits(tmp_path / "pruned", new), logits(start.path, old)[:, kept]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", DECODERS)
def test_the_result_loads_and_generates_with_plain_transformers(family, tmp_path):
    pruned(parent(tmp_path / "parent", family=family), tmp_path / "pruned", target={"params": "90%"})
    model = load_model(tmp_path / "pruned", dtype=torch.float32)  # refuses missing and unexpected keys
    tokenizer = load_tokenizer(tmp_path / "pruned")
    ids = tokenizer("The old raft", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert isinstance(tokenizer.decode(written[0]), str) and written.max() < model.config.vocab_size


def test_special_ids_are_renumbered_everywhere(tmp_path):
    start = parent(tmp_path / "parent", "byte_level", eos_token_id=[601, 600])
    settings = json.loads((start.path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"600": {"content": "<s>"}, "601": {"content": "</s>"}}
    (start.path / "tokenizer_config.json").write_text(json.dumps(settings))
    (start.path / "added_tokens.json").write_text(json.dumps({"<s>": 600, "</s>": 601}))
    generation = {"bos_token_id": 600, "eos_token_id": [601, 600], "suppress_tokens": [3, 599, 600]}
    (start.path / "generation_config.json").write_text(json.dumps(generation))
    (start.path / "merges.txt").write_text("old")
    _, _, context = pruned(start, tmp_path / "pruned", target={"tokens": 400})
    kept = read_kept(tmp_path / "pruned")
    bos, eos = kept.index(600), kept.index(601)

    def read(name):
        return json.loads((tmp_path / "pruned" / name).read_text())

    assert read("config.json")["eos_token_id"] == [eos, bos] and read("config.json")["bos_token_id"] == bos
    assert read("generation_config.json")["eos_token_id"] == [eos, bos]
    assert read("generation_config.json")["suppress_tokens"] == [kept.index(3), bos]
    assert set(read("tokenizer_config.json")["added_tokens_decoder"]) == {str(bos), str(eos)}
    assert read("added_tokens.json") == {"<s>": bos, "</s>": eos}
    assert load_tokenizer(tmp_path / "pruned").eos_token_id == eos
    assert not (tmp_path / "pruned/merges.txt").exists() and "merges.txt" in context.warnings[0]


def test_padding_goes_before_any_token(tmp_path):
    start = parent(tmp_path / "parent")
    outcome, *_ = pruned(start, tmp_path / "pruned", target={"tokens": 640})
    assert read_kept(tmp_path / "pruned") == list(range(640))
    assert outcome.facts["corpus_tokens_dropped"] == 0
    for text in SENTENCES[:5]:
        ids = load_tokenizer(start.path)(text)["input_ids"]
        assert load_tokenizer(tmp_path / "pruned")(text)["input_ids"] == ids


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_dropping_nothing_returns_the_same_bytes(shard, tmp_path):
    start = parent(tmp_path / "parent")
    with quiet():
        load_model(start.path).save_pretrained(start.path, max_shard_size=shard)
    start = start.model_copy(update={"spec": read_spec(start.path)})
    pruned(start, tmp_path / "pruned", target={"tokens": "100%"})
    files = {file.name for file in (tmp_path / "pruned").iterdir()}
    assert files == {file.name for file in start.path.iterdir() if shard == "5GB" or file.name in files}
    assert all((tmp_path / "pruned" / n).read_bytes() == (start.path / n).read_bytes() for n in files)


def test_several_files_give_the_same_model_as_one(tmp_path):
    start = parent(tmp_path / "parent")
    with quiet():
        load_model(start.path).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for file in start.path.glob("token*"):
        (tmp_path / "shards" / file.name).write_bytes(file.read_bytes())
    several = start.model_copy(update={"path": tmp_path / "shards"})
    for source, name in ((start, "one"), (several, "many")):
        pruned(source, tmp_path / name, target={"tokens": 512})
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert torch.equal(logits(tmp_path / "one", [3, 4, 5]), logits(tmp_path / "many", [3, 4, 5]))


def test_pruning_twice_maps_to_the_first_vocabulary(tmp_path):
    start = parent(tmp_path / "parent")
    outcome, *_ = pruned(start, tmp_path / "once", target={"tokens": 576})
    middle = Artifact(key="once", kind="hf", path=tmp_path / "once", spec=outcome.spec)
    pruned(middle, tmp_path / "twice", target={"tokens": 480})
    kept, names = read_kept(tmp_path / "twice"), load_tokenizer(start.path).convert_ids_to_tokens(range(640))
    assert load_tokenizer(tmp_path / "twice").convert_ids_to_tokens(range(480)) == [names[i] for i in kept]


def test_what_is_named_in_keep_stays(tmp_path):
    start = parent(tmp_path / "parent")
    tokenizer = load_tokenizer(start.path)
    text = TEXTS[-1]
    wanted = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    pruned(start, tmp_path / "without", target={"tokens": 480})
    assert not wanted <= set(read_kept(tmp_path / "without"))
    pruned(start, tmp_path / "with", target={"tokens": 480}, keep=(text,))
    assert wanted <= set(read_kept(tmp_path / "with"))


def test_a_target_below_what_must_stay_fails_and_names_what_is_possible(tmp_path):
    start = parent(tmp_path / "parent")
    with pytest.raises(StepFailed, match=r"target of 192 tokens: 259 must stay.*give at least 259"):
        pruned(start, tmp_path / "a", target={"tokens": 192})
    with pytest.raises(StepFailed, match="those used 2 times or more"):
        pruned(start, tmp_path / "b", target={"tokens": 272}, min_count=2)


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path):
    start = parent(tmp_path / "parent", padding=0)
    other = parent(tmp_path / "other", "sentencepiece")
    context = FakeContext(tmp_path / "out", inputs={"corpus": corpus(tmp_path / "corpus", other.path)})
    with pytest.raises(InputError, match="tokenized with another tokenizer"):
        vocab.run(start, vocab.Config(target={"tokens": 512}), context)


def test_the_cheapest_token_that_nothing_is_built_from_goes_first():
    # 4 = 0 1, 5 = 4 2, 6 = 0 3; padding at 7
    parts = {4: (0, 1), 5: (4, 2), 6: (0, 3)}
    vocabulary = Vocabulary(frozenset(range(7)), parts, frozenset(range(4)))
    counts = [9, 0, 0, 0, 1, 5, 3, 0]
    assert choose(counts, vocabulary, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert choose(counts, vocabulary, 6) == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]  # 4 is used less than 6, but 5 is built from it
    # once 5 is gone, 4 stands where 5 stood: 6 uses
    assert choose([*counts[:6], 6, 0], vocabulary, 6) == [0, 1, 2, 3, 4, 6]
    assert choose([*counts[:6], 7, 0], vocabulary, 5) == [0, 1, 2, 3, 6]
    with pytest.raises(StepFailed, match="give at least 6"):
        choose(counts, vocabulary, 4, min_count=4)


@pytest.mark.parametrize(
    ("target", "size"),
    [({"tokens": 500}, 512), ({"tokens": "50%"}, 352), ({"tokens": 704}, 704), ({"tokens": 700}, 704)],
)
def test_tokens_are_rounded_up_to_the_alignment(target, size, tmp_path):
    spec = parent(tmp_path).spec
    assert spec.config["vocab_size"] == 704
    aligned = vocab.predict(spec, vocab.Config(target=target, align=32 if target != {"tokens": 700} else 64))
    assert aligned.config["vocab_size"] == size


def test_parameters_give_the_nearest_vocabulary(tmp_path):
    spec = parent(tmp_path).spec
    half = vocab.predict(spec, vocab.Config(target={"params": "85%"}))
    assert half.num_parameters == pytest.approx(0.85 * spec.num_parameters, rel=0.01)
    assert half.config["vocab_size"] % 8 == 0


@pytest.mark.parametrize("target", [{}, {"tokens": 100, "params": "50%"}])
def test_a_target_is_tokens_or_parameters(target):
    with pytest.raises(ValidationError, match="give either `tokens` or `params`"):
        vocab.Config(target=target)


def test_what_cannot_be_planned_is_refused_before_running(tmp_path):
    spec = parent(tmp_path).spec
    for target, message in (
        ({"tokens": 705}, "target of 705 tokens is more than the parent's 704"),
        ({"params": "5%"}, "without its vocabulary the model still has"),
        ({"params": "10B"}, "more than the parent's"),
    ):
        with pytest.raises(InputError, match=message):
            vocab.predict(spec, vocab.Config(target=target))
    with pytest.raises(ValidationError, match="expected a number of tokens like 32k"):
        vocab.Config(target={"tokens": "many"})


@pytest.mark.parametrize("family", DECODERS)
def test_a_rehearsal_changes_nothing(family, tmp_path):
    spec = parent(tmp_path, family=family).spec
    config = vocab.rehearse(vocab.Config(target={"tokens": 32000}, min_count=5, keep=("x",)))
    assert vocab.predict(spec, config).size == spec.size


def test_the_step_fulfils_the_contract(tmp_path):
    spec = parent(tmp_path).spec
    config = vocab.Config(target={"tokens": "50%"})
    assert plugins.references(vocab.Config) == {"corpus": "data"}
    assert vocab.estimate(spec, config, {}).disk_bytes == vocab.predict(spec, config).weight_bytes
    for settings in (vocab.Config, vocab.Target):
        assert all(field.description for field in settings.model_fields.values())
