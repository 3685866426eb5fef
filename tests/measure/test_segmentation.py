"""How a pruned model's divergence is taken, with the pruning step's own result."""

from math import log
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from compress import plugins
from compress.data.tokens import PackedTokens
from compress.measure import divergence
from compress.measure.segmentation import Row, recut
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


class Spelled:
    """A tokenizer whose mark is 0 and whose other tokens are written as their ids."""

    all_special_ids = (0,)
    added_tokens_decoder: ClassVar = {}
    backend_tokenizer = SimpleNamespace(model=None, decoder=None)

    def convert_ids_to_tokens(self, ids):
        return [str(index) for index in ids]


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
    share = "50%" if request.param == "word_piece" else "75%"  # it can spare more
    outcome, *_ = pruned(start, folder / "pruned", target={"tokens": share})
    student = Artifact(key="pruned", kind="hf", path=folder / "pruned", spec=outcome.spec)
    return start, student, text_of(folder / "text", load_tokenizer(start.path))


def rows_of(text: Artifact) -> torch.Tensor:
    packed = PackedTokens.open(text.path)
    return packed.rows(0, packed.num_sequences)


def test_what_counts_as_alike_is_the_original_token_by_token(made):
    original, student, text = made
    kept, rows = read_kept(student.path), rows_of(text).tolist()
    tokenizers = load_tokenizer(original.path), load_tokenizer(student.path)
    cut = recut(rows, *tokenizers, kept)
    assert 5 < sum(row.agrees for row in cut) < len(rows)
    assert sum(1 < row.num_alike < LENGTH for row in cut) > 5
    for row, new in zip(rows, cut, strict=True):
        assert [kept[index] for index in new.ids[: new.num_alike]] == row[: new.num_alike]
        if not new.agrees:
            read = [
                t.decode(ids, skip_special_tokens=True)
                for t, ids in zip(tokenizers, (row, new.ids), strict=True)
            ]
            assert read[0].strip(LOST) == read[1].strip(LOST)


def test_a_row_is_alike_up_to_the_first_token_cut_otherwise():
    class Fixed(Spelled):
        """Reads ids as words; cuts each text as it is told."""

        def __init__(self, cuts):
            self.cuts = cuts

        def decode(self, ids, **_):
            return " ".join(map(str, ids))

        def __call__(self, texts, **_):
            return {"input_ids": [self.cuts[text] for text in texts]}

    rows = [[0, 5, 6, 7, 0, 5, 6], [0, 5, 6, 0, 5, 8], [8, 0, 5, 6]]
    original = Fixed({"5 6 7": [5, 6, 7], "5 6": [5, 6], "5 8": [5, 8], "8": [8]})
    # ids 0 5 6 7 of the original are 0 1 2 3; 8 is gone. "5 6 7" is cut otherwise from its third token on.
    own = Fixed({"5 6 7": [1, 2, 2], "5 6": [1, 2], "5 8": [1, 3, 3], "8": [3, 3]})
    assert [(row.ids, row.num_alike) for row in recut(rows, original, own, [0, 5, 6, 7])] == [
        ([0, 1, 2, 2, 0, 1, 2], 3),
        ([0, 1, 2, 0, 1, 3, 3], 5),
        ([3, 3, 0, 1, 2], 0),
    ]


def test_a_run_its_own_tokenizer_would_cut_otherwise_is_alike_where_both_do_the_same():
    class Borders(Spelled):
        """Cuts half a word at the start of a row as no row holds it."""

        def __init__(self, first):
            self.first = first

        def decode(self, ids, **_):
            return "half"

        def __call__(self, texts, **_):
            return {"input_ids": [[self.first, self.first] for _ in texts]}

    row = [5, 6, 0]
    assert recut([row], Borders(7), Borders(3), [0, 5, 6, 7]) == [Row([1, 2, 0], 3, [(0, 0), (1, 1), (2, 2)])]
    assert recut([row], Borders(7), Borders(2), [0, 5, 6, 7]) == [Row([2, 2, 0], 0, [])]


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
    assert "perplexity" not in measured
    given = FakeContext(tmp_path / "unrounded", inputs={"text": text, "original": original})
    before = {m.name: m for m in divergence.measure(student, divergence.Config(batch_size=8), given)}
    for name, most in (("kl_divergence", 0.1), ("kl_coverage", 0.0), ("same_segmentation", 0.0)):
        assert abs(measured[name].value - before[name].value) <= most
        assert measured[name].n == before[name].n
    assert measured["kl_divergence"].value != before["kl_divergence"].value
