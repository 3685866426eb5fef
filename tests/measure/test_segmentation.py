"""How a pruned model's divergence is taken, with the pruning step's own result."""

from math import log

import pytest
import torch

from compress import plugins
from compress.data.tokens import PackedTokens
from compress.measure import divergence
from compress.measure.segmentation import recut
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.token_map import mapped_ids, read_kept
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.small_tokenizers import HELD_OUT, KINDS
from tests.prune.test_vocab import parent, pruned
from tests.train.inputs import tokens

LENGTH = 24
LOST = "\ufffd #"
"""What reading a row back can leave at its ends: spaces, a part of a character, the mark of a word's inside."""


def text_of(folder, tokenizer, texts=tuple(HELD_OUT)) -> Artifact:
    """Packed rows as `data.pack` makes them, marks included."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bos, eos = ([] if mark is None else [mark] for mark in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    stream = [index for ids in encoded for index in (*bos, *ids, *eos)]
    num = len(stream) // LENGTH
    return tokens(folder, torch.tensor(stream[: num * LENGTH]).view(num, LENGTH))


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    start = parent(folder / "original", request.param, dtype=torch.float32, max_position_embeddings=64)
    outcome, *_ = pruned(start, folder / "pruned", target={"tokens": "75%"})
    student = Artifact(key="pruned", kind="hf", path=folder / "pruned", spec=outcome.spec)
    return start, student, text_of(folder / "text", load_tokenizer(start.path))


def rows_of(text: Artifact) -> torch.Tensor:
    packed = PackedTokens.open(text.path)
    return packed.rows(0, packed.num_sequences)


def test_rows_agree_where_every_token_stays(made):
    original, student, text = made
    kept, rows = read_kept(student.path), rows_of(text).tolist()
    tokenizers = load_tokenizer(original.path), load_tokenizer(student.path)
    cut = recut(rows, *tokenizers, kept)
    agreeing = [row.agrees for row in cut]
    # Text that is cut at a row's border can only lose agreement, never gain it.
    assert all(set(row) <= set(kept) for row, agrees in zip(rows, agreeing, strict=True) if agrees)
    assert 5 < sum(agreeing) < len(rows)
    for row, new in zip(rows, cut, strict=True):
        if new.agrees:
            assert [kept[index] for index in new.ids] == row
        else:
            read = [
                t.decode(ids, skip_special_tokens=True)
                for t, ids in zip(tokenizers, (row, new.ids), strict=True)
            ]
            assert read[0].strip(LOST) == read[1].strip(LOST)


def test_a_model_that_only_lost_tokens_does_not_diverge_on_the_text_it_shares(made, tmp_path):
    original, student, text = made
    given = FakeContext(tmp_path / "out", inputs={"text": text, "original": original})
    measured = {m.name: m for m in divergence.measure(student, divergence.Config(batch_size=8), given)}
    assert set(measured) == {
        "bits_per_byte",
        "same_segmentation",
        "kl_divergence",
        "kl_p99",
        "same_top_token",
    }
    assert measured["kl_divergence"].value < 1e-6 and measured["same_top_token"].value == 1.0
    assert 0 < measured["same_segmentation"].value < 1
    assert measured["same_segmentation"].n == len(rows_of(text)) == given.reports[-1][0]
    shared = round(measured["same_segmentation"].value * measured["same_segmentation"].n)
    assert measured["kl_divergence"].n == shared * (LENGTH - 1)
    assert "of the original's probability lies on others" in measured["kl_divergence"].note
    assert not given.warnings


def test_bits_per_byte_are_of_the_whole_text_in_the_models_own_cut(made, tmp_path):
    original, student, text = made
    given = FakeContext(tmp_path / "out", inputs={"text": text, "original": original})
    measured = {m.name: m for m in divergence.measure(student, divergence.Config(batch_size=8), given)}
    own = load_tokenizer(student.path)
    cut = recut(rows_of(text).tolist(), load_tokenizer(original.path), own, read_kept(student.path))
    model = load_model(student.path)
    nats = num_bytes = 0.0
    with torch.no_grad():
        for row in cut:
            ids_T = torch.tensor(row.ids)
            log_q_TV = model(input_ids=ids_T[None]).logits[0, :-1].log_softmax(-1)
            nats -= float(log_q_TV.gather(-1, ids_T[1:, None]).sum())
            num_bytes += len(own.decode(row.ids[1:], skip_special_tokens=True).encode())
    assert measured["bits_per_byte"].value == pytest.approx(nats / log(2) / num_bytes, rel=1e-4)


def test_what_is_built_on_a_pruned_model_is_compared_in_the_same_way(made, tmp_path):
    original, student, text = made
    rounding = plugins.step("quantize.rtn")
    config = rounding.Config(bits=8, group_size=16)
    outcome = rounding.run(student, config, FakeContext(tmp_path / "rounded"))
    rounded = Artifact(key="rounded", kind=rounding.PRODUCES, path=tmp_path / "rounded", spec=outcome.spec)
    given = FakeContext(tmp_path / "out", inputs={"text": text, "original": original})
    measured = {m.name: m for m in divergence.measure(rounded, divergence.Config(batch_size=8), given)}
    assert mapped_ids(rounded.path, original.path) == read_kept(student.path)
    assert 1e-6 < measured["kl_divergence"].value < 0.1 and "perplexity" not in measured
