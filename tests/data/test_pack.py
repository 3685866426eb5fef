import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from compress.data import pack
from compress.data.tokens import PackedTokens, given_template
from compress.errors import InputError
from compress.records import ModelSpec
from tests.data.chats import MESSAGES, PLAIN
from tests.fakes import FakeContext


def as_one(rows):
    """The ids of rows one after the other, without the BOS of those that begin within a text."""
    flat = rows.flatten().tolist()
    length = rows.shape[1]
    whole = []
    for place, index in enumerate(flat):
        begins_a_text = place == 0 or flat[place - 1] == 1  # after an EOS
        if index != 0 or place % length or begins_a_text:
            whole.append(index)
    return whole


POEM = "one two three\nfour\n\nfive six\n\n\nseven"


def packed_by(parent, context, **settings):
    outcome = pack.run(parent, pack.Config(**settings), context)
    assert outcome.facts == json.loads((context.folder / "tokens.json").read_text())
    return PackedTokens.open(context.folder)


@pytest.fixture
def chats(tmp_path):
    """A file with a conversation, a text and the conversation again, and a chat template beside it."""
    lines = ({"said": list(MESSAGES)}, {"said": "plain text"}, {"said": list(MESSAGES)})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "chat.jinja").write_text(PLAIN)
    settings = {"paths": [str(tmp_path / "chats.jsonl")], "field": "said"}
    return {"source": "jsonl", "settings": settings, "chat_template": str(tmp_path / "chat.jinja")}


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM)
    return {"source": "text", "settings": {"paths": [str(path)]}}


def test_documents_are_joined_by_bos_and_eos_and_come_back(byte_tokenizer, context, poem):
    outcome = pack.run(byte_tokenizer, pack.Config(**poem, sequence_length=4), context)
    packed = PackedTokens.open(context.folder)
    rows = packed.rows(0, packed.num_sequences)
    assert (rows[:, 0] == 0).all()
    text = AutoTokenizer.from_pretrained(byte_tokenizer.path).decode(as_one(rows))
    whole = "<s>one two three\nfour</s><s>five six</s><s>seven</s>"
    assert whole.startswith(text)
    assert outcome.facts["documents"] == 3
    assert outcome.facts["tokens"] == packed.num_sequences * 4 == 48
    # 37 ids and the BOS of eleven rows that begin within a text: all of it fills rows.
    assert outcome.facts["text_bytes"] == 31


def test_blank_texts_are_packed_nowhere_and_counted_nowhere(byte_tokenizer, tmp_path):
    lines = {"full": ["ab", "cd"], "gappy": ["", "ab", " \n", "cd", ""]}
    made = {}
    for name, texts in lines.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        context = FakeContext(tmp_path / f"out-{name}")
        settings = {"paths": [str(tmp_path / name)]}
        outcome = pack.run(
            byte_tokenizer, pack.Config(source="jsonl", settings=settings, sequence_length=4), context
        )
        made[name] = (outcome.facts, (context.folder / "tokens.bin").read_bytes())
    assert made["gappy"] == made["full"]
    assert made["full"][0]["documents"] == 2


def test_nothing_but_blank_texts_is_refused(byte_tokenizer, context, tmp_path):
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n' * 9)
    settings = {"paths": [str(tmp_path / "blank.jsonl")]}
    with pytest.raises(InputError, match="has 0 tokens: too little for one row of 4"):
        packed_by(byte_tokenizer, context, source="jsonl", settings=settings, sequence_length=4)
    mixture = {"parts": [{"source": "jsonl", **settings}, {"source": "demo"}], "on_end": "repeat"}
    with pytest.raises(InputError, match=r"part 1 \(jsonl\) holds no text to repeat"):
        packed_by(byte_tokenizer, context, source="mixture", settings=mixture, sequence_length=4, samples=9)


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
    assert PackedTokens.open(context.folder).num_sequences == 12
    assert "fills only 12 of 100 rows" in context.warnings[0]


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


def test_a_batch_says_where_documents_begin(byte_tokenizer, context, poem):
    packed = packed_by(byte_tokenizer, context, **poem, sequence_length=9)
    batch = packed.learning_batch(range(packed.num_sequences))
    whole = "<s>one two three\nfour</s><s>five six</s><s>seven</s>"
    begins = (batch.ids == 0).flatten()
    text = AutoTokenizer.from_pretrained(byte_tokenizer.path).decode(as_one(batch.ids))
    assert whole.startswith(text)
    positions = batch.positions.flatten().tolist()
    for place, position in enumerate(positions):
        assert position == (0 if begins[place] or place % 9 == 0 else positions[place - 1] + 1)
    assert batch.learned is None
    assert batch.is_target.sum() == batch.ids[:, 1:].numel() - begins.view(-1, 9)[:, 1:].sum()


def test_rows_within_one_document_have_no_positions(byte_tokenizer, context, poem):
    packed = packed_by(byte_tokenizer, context, **poem, sequence_length=9)
    assert packed.learning_batch([0, 1]).positions is None
    assert packed.learning_batch([0, 2]).positions is not None
    assert packed.learning_batch([0, 1]).is_target is None


def test_ids_are_the_same_with_or_without_marks(byte_tokenizer, context, poem):
    packed = packed_by(byte_tokenizer, context, **poem, sequence_length=9)
    facts = json.loads((context.folder / "tokens.json").read_text())
    del facts["marks"]
    (context.folder / "tokens.json").write_text(json.dumps(facts))
    plain = PackedTokens.open(context.folder).learning_batch([3, 0])
    assert plain.positions is None and plain.learned is None
    assert torch.equal(plain.ids, packed.learning_batch([3, 0]).ids)


def test_conversations_are_packed_with_what_is_to_be_learned(byte_tokenizer, context, chats):
    packed = packed_by(byte_tokenizer, context, **chats, sequence_length=16)
    batch = packed.learning_batch(range(packed.num_sequences))
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer.path)
    answers = "In Arlen.</s>  15 🙂!</s>"
    learned = batch.learned.clone()
    learned[:, 0] = False  # the first of a row is no target
    begun = [row for row in batch.ids[learned].tolist() if row != 0]
    text = f"{answers}plain text</s>{answers[:13]}"
    assert tokenizer.decode(begun).startswith(text)
    facts = json.loads((context.folder / "tokens.json").read_text())
    assert facts["learned_tokens"] == batch.learned.sum() < facts["tokens"]
    assert context.warnings == []


def test_a_batch_in_which_all_is_learned_says_nothing_of_it(byte_tokenizer, context, chats):
    packed = packed_by(byte_tokenizer, context, **chats, sequence_length=4)
    learned = packed.learning_batch(range(packed.num_sequences)).learned
    rows = learned.all(1).nonzero().flatten().tolist()
    assert rows and packed.learning_batch(rows).learned is None
    assert packed.learning_batch([*rows, 0]).learned.sum() == len(rows) * 4


def test_where_everything_is_learned_no_file_says_so(byte_tokenizer, context, poem):
    packed_by(byte_tokenizer, context, **poem, sequence_length=4)
    assert sorted(file.name for file in context.folder.iterdir()) == [
        "starts.bin",
        "tokens.bin",
        "tokens.json",
    ]


def test_the_template_that_was_given_is_kept_with_what_it_wrote(byte_tokenizer, context, chats, tmp_path):
    pack.run(byte_tokenizer, pack.Config(**chats, sequence_length=16), context)
    assert given_template(context.folder) == (tmp_path / "chat.jinja").read_text()


def test_a_template_that_wrote_nothing_is_not_kept(byte_tokenizer, context, chats, poem):
    pack.run(byte_tokenizer, pack.Config(**{**chats, **poem}, sequence_length=4), context)
    assert given_template(context.folder) is None


def test_a_chat_template_that_is_not_utf_8_is_named(byte_tokenizer, context, chats, tmp_path):
    (tmp_path / "chat.jinja").write_bytes(PLAIN.encode() + b"\xff")
    with pytest.raises(InputError, match=r"chat\.jinja is not UTF-8 text"):
        packed_by(byte_tokenizer, context, **chats, sequence_length=16)


def test_a_mistake_in_the_chat_template_is_told_with_its_own_place(byte_tokenizer, context, chats, tmp_path):
    (tmp_path / "chat.jinja").write_text(PLAIN.replace("{% endfor %}", "\n\n{% endfo %}"))
    with pytest.raises(InputError, match=r"^\S*chat\.jinja:5: no valid chat template: .*unknown tag 'endfo'"):
        packed_by(byte_tokenizer, context, **chats, sequence_length=16)


def test_files_that_hold_too_little_are_named(byte_tokenizer, context, tmp_path):
    paths = [str(tmp_path / "empty.txt"), str(tmp_path / "blank.txt")]
    for path in paths:
        Path(path).write_text("\n")
    with pytest.raises(InputError, match=r"the source 'text' \(\S*empty\.txt and 1 more\) has 0 tokens"):
        packed_by(byte_tokenizer, context, source="text", settings={"paths": paths}, sequence_length=4)


def test_conversations_without_an_answer_are_refused(byte_tokenizer, context, chats):
    line = json.dumps({"said": [{"role": "user", "content": "hi"}] * 9})
    Path(chats["settings"]["paths"][0]).write_text(line)
    with pytest.raises(InputError, match=r"holds nothing to learn: no message .* has the role 'assistant'"):
        packed_by(byte_tokenizer, context, **chats, sequence_length=16)


def test_a_chat_template_without_conversations_is_told_to_be_of_no_use(byte_tokenizer, context, chats, poem):
    packed_by(byte_tokenizer, context, **{**chats, **poem}, sequence_length=4)
    assert "holds no conversations: `chat_template` was of no use" in context.warnings[0]


def test_a_mixture_is_packed_by_its_shares_of_tokens(byte_tokenizer, context, poem):
    mixture = {
        "parts": [{"source": "text", "weight": 3, **poem["settings"]}, {"source": "demo", "weight": 1}],
        "on_end": "repeat",
    }
    packed = packed_by(
        byte_tokenizer, context, source="mixture", settings=mixture, sequence_length=64, samples=1600
    )
    ids = as_one(packed.rows(0, 1600))
    text = AutoTokenizer.from_pretrained(byte_tokenizer.path).decode(ids)
    verses = ("one two three\nfour", "five six", "seven")
    of_the_poem = sum(text.count(f"<s>{verse}</s>") * (len(verse) + 2) for verse in verses)
    assert of_the_poem / len(ids) == pytest.approx(0.75, abs=0.02)


def test_a_mixture_is_the_same_for_the_same_seed_and_ends_with_its_first_part(byte_tokenizer, tmp_path, poem):
    parts = [{"source": "text", **poem["settings"]}, {"source": "demo"}, {"source": "demo"}]
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        context = FakeContext(tmp_path / name, seed=seed)
        packed_by(byte_tokenizer, context, source="mixture", settings={"parts": parts}, sequence_length=8)
        made.append((context.folder / "tokens.bin").read_bytes())
    assert made[0] == made[1] != made[2]
    text = AutoTokenizer.from_pretrained(byte_tokenizer.path).decode(
        as_one(torch.tensor([*made[0][::2]]).view(-1, 8))
    )
    documents = text.split("<s>")[1:]
    assert "five six</s>" in documents
    assert len(set(documents)) == len(documents)  # two parts of one source have seeds of their own


def test_a_repeated_mixture_needs_a_number(byte_tokenizer, context):
    settings = {"parts": [{"source": "demo"}, {"source": "demo"}]}
    with pytest.raises(InputError, match="'mixture' never ends: give `samples` or `tokens`"):
        packed_by(byte_tokenizer, context, source="mixture", settings=settings, sequence_length=8)


def test_much_text_is_expected_to_be_shared_among_the_cores():
    little, much = (
        pack.estimate(None, pack.Config(source="demo", sequence_length=8, tokens=n), {}).serial_seconds
        for n in (10**6, 10**9)
    )
    assert little == pytest.approx(pack.START_SECONDS + 0.5, rel=0.05)
    assert 100 < much < 1000 * (little - pack.START_SECONDS) / 2
