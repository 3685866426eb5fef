"""The original's body is run once, whatever the number of students, and no figure changes."""

import pytest
import torch

from compress.measure import divergence, last_states
from compress.models import device as devices
from compress.models.spec import copy_tokenizer
from compress.records import Artifact
from tests.meters.tiny_llama import write_llama
from tests.models.tiny import tiny_model, write_tiny

CONFIG = divergence.Config(batch_size=4)


@pytest.fixture
def states(original, text, context):
    return kept(original, text, context)


def kept(original, text, context, name="states", **settings):
    given = context(name, text=text)
    last_states.run(original, last_states.Config(**{"batch_size": 4, **settings}), given)
    assert given.reports[-1][0] == given.reports[-1][1]
    return Artifact(key=name, kind="states", path=given.folder)


@pytest.fixture
def passes(monkeypatch):
    """How many tokens passed each transformers body, by the seed-dependent first weight of its embedding."""
    import transformers

    seen = {}

    def watch(kind):
        forward = kind.forward

        def counted(self, input_ids=None, **rest):
            name = float(self.get_input_embeddings().weight[0, 0])
            seen[name] = seen.get(name, 0) + input_ids.numel()
            return forward(self, input_ids=input_ids, **rest)

        monkeypatch.setattr(kind, "forward", counted)

    watch(transformers.LlamaModel)
    return seen


def test_the_figures_are_the_same_and_the_original_is_not_read(
    original, student, text, states, context, passes
):
    before = divergence.measure(student, CONFIG, context("before", text=text, original=original))
    read = dict(passes)
    assert sorted(read.values())[-2:] == [361, 361]  # each once, and one token to open it
    passes.clear()
    after = divergence.measure(student, CONFIG, context("after", text=text, original=original, states=states))
    assert after == before
    assert sorted(passes.values())[-1] == 361 and min(passes.values()) <= 5


def test_the_original_itself_is_measured_by_its_head(original, text, states, context, passes):
    before = divergence.measure(original, CONFIG, context("before", text=text))
    passes.clear()
    assert divergence.measure(original, CONFIG, context("after", text=text, states=states)) == before
    assert max(passes.values()) <= 5


def test_rows_beyond_the_room_are_read_as_ever(original, student, text, context, monkeypatch):
    monkeypatch.setattr(last_states, "MOST_BYTES", 4 * 60 * 32 * 4)
    some = kept(original, text, context, "some")
    num_kept = len(last_states.read_states(some))
    assert 1 <= num_kept < 6
    before = divergence.measure(student, CONFIG, context("before", text=text, original=original))
    after = divergence.measure(student, CONFIG, context("after", text=text, original=original, states=some))
    for one, other in zip(before, after, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast", [True, False])
def test_states_are_kept_as_they_are_computed(fast, dtype, text, context, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: fast)
    computed = dtype if fast and dtype == torch.bfloat16 else torch.float32
    original = write_llama(tmp_path / "original", seed=0)
    from compress.models.checkpoint import load_model

    load_model(original.path).to(dtype).save_pretrained(original.path)
    states_STH = last_states.read_states(kept(original, text, context))
    assert states_STH.dtype == computed and states_STH.shape[:2] == (6, 60)
    from compress.data.tokens import PackedTokens

    rows_ST = PackedTokens.open(text.path).rows(0, 4)
    with torch.no_grad():
        expected = load_model(original.path, dtype=computed).model(rows_ST).last_hidden_state
    torch.testing.assert_close(states_STH[:4], expected)


def test_an_encoder_too(original, text, context, tmp_path):
    made = []
    for seed in (0, 1):
        folder = tmp_path / f"encoder{seed}"
        write_tiny(folder, "bert")
        tiny_model("bert", seed=seed).save_pretrained(folder)
        copy_tokenizer(original.path, folder)
        made.append(Artifact(key=f"encoder {seed}", kind="hf", path=folder))
    states = kept(made[0], text, context)
    before = divergence.measure(made[1], CONFIG, context("before", text=text, original=made[0]))
    after = divergence.measure(made[1], CONFIG, context("after", text=text, original=made[0], states=states))
    assert after == before and len(after) == 3
