"""How much of what is read is learned: counted exactly, and said where it is little."""

import json

import numpy as np
import pytest

from compress.data.marks import LEARNED, MarkWriter
from compress.data.tokens import PackedTokens
from compress.train import checkpoint, step
from compress.train.batches import Batches
from tests.train.inputs import context, parent
from tests.train.test_resume import CONFIG, DiesAt, Killed


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("learned") / "parent")


def given(folder, share, kind=None):
    """A context whose data are learned from in so large a part, spread unevenly over the rows."""
    made = context(folder, **({"kind": kind} if kind else {}))
    data = made.inputs["data"].path
    facts = json.loads((data / "tokens.json").read_text())
    marks = np.random.default_rng(0).random((facts["num_sequences"], facts["sequence_length"])) < share
    with MarkWriter(data / LEARNED, facts["sequence_length"]) as writer:
        writer.write(marks.ravel())
    told = {"marks": [LEARNED], "tokens": marks.size, "learned_tokens": int(marks.sum())}
    (data / "tokens.json").write_text(json.dumps({**facts, **told}))
    return made


def counted(folder) -> int:
    data = PackedTokens.open(folder)
    batches = Batches(data, 4, 7)
    return sum(len(batches.at(number).targets) for number in range(CONFIG.tokens // CONFIG.batch_tokens))


def test_what_was_learned_is_counted_exactly_when_resumed_too(model, tmp_path):
    whole = step.run(model, CONFIG, given(tmp_path / "whole" / "result", 0.3))
    with pytest.raises(Killed):
        step.run(model, CONFIG, given(tmp_path / "cut" / "result", 0.3, DiesAt))
    resumed = step.run(model, CONFIG, given(tmp_path / "cut" / "result", 0.3))
    expected = counted(tmp_path / "whole" / "tokens")
    assert whole.facts["learned_tokens"] == resumed.facts["learned_tokens"] == expected
    assert 0.2 * CONFIG.tokens < expected < 0.4 * CONFIG.tokens


def test_of_plain_text_all_but_the_first_token_of_a_row_is_learned(model, tmp_path):
    outcome = step.run(model, CONFIG, context(tmp_path / "result"))
    assert outcome.facts["learned_tokens"] == CONFIG.tokens * 15 // 16


@pytest.mark.parametrize(("share", "is_little"), [(0.05, True), (0.3, False)])
def test_it_is_said_when_little_of_the_data_is_learned(model, tmp_path, share, is_little):
    made = given(tmp_path / "result", share)
    step.run(model, CONFIG, made)
    assert bool(made.warnings) == is_little
    if is_little:
        assert "of 'recovery' only 4.7 % of the tokens are learned" in made.warnings[0]
