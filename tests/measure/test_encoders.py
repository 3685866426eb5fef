"""An encoder is measured by what it predicts beside the original, how fast it reads, and its memory."""

import pytest
import torch

from compress.errors import InputError
from compress.measure import divergence, latency, memory
from compress.models.checkpoint import load_model
from compress.models.spec import copy_tokenizer
from compress.records import Artifact
from tests.models.tiny import tiny_model, write_tiny


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, original):
    """Two encoders with the tokenizer of `original`: an original, and another."""
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("encoder")
        write_tiny(folder, "bert")
        tiny_model("bert", seed=seed).save_pretrained(folder)
        copy_tokenizer(original.path, folder)
        made.append(Artifact(key=f"encoder {seed}", kind="hf", path=folder))
    return made


def test_its_divergence_is_over_its_predictions_of_visible_tokens(encoders, text, context):
    first, second = encoders
    measured = {
        m.name: m for m in divergence.measure(second, divergence.Config(), context(original=first, text=text))
    }
    assert measured.keys() == {"kl_divergence", "kl_p99", "same_top_token"}
    from compress.data.tokens import PackedTokens

    ids = PackedTokens.open(text.path).rows(0, 6)
    with torch.no_grad():
        p, q = (load_model(model.path)(ids).logits[:, :-1].log_softmax(-1) for model in encoders)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert measured["kl_divergence"].value == pytest.approx(float(expected), rel=1e-4)
    same = (p.argmax(-1) == q.argmax(-1)).float().mean()
    assert measured["same_top_token"].value == pytest.approx(float(same))
    assert "which the models see" in measured["same_top_token"].note


def test_the_original_alone_has_no_divergence_and_no_perplexity(encoders, text, context):
    assert divergence.measure(encoders[0], divergence.Config(), context(text=text)) == []


def test_its_speed_is_that_of_a_pass(encoders, context):
    config = latency.Config(batch_sizes=(1, 2), prompt_tokens=(500,), new_tokens=32, repeats=2, num_threads=1)
    threads = torch.get_num_threads()
    measured = latency.measure(encoders[1], config, context(original=encoders[0]))
    torch.set_num_threads(threads)
    assert [m.name for m in measured] == ["time_per_pass", "prefill_tokens_per_second"] * 2
    time, speed = measured[2:]
    assert speed.value == pytest.approx(2 * 500 * 1e3 / time.value, rel=0.5)
    assert time.beside["original"] > 0 and "without the output head" in time.note
    with pytest.raises(InputError, match="prompt_tokens are 600, but the model reads at most 512"):
        latency.measure(encoders[0], config.model_copy(update={"prompt_tokens": (600,)}), context())


def test_its_memory_is_that_of_a_pass(encoders, context):
    config = memory.Config(batch_sizes=(2,), prompt_tokens=(16,), new_tokens=4)
    measured = {m.name: m for m in memory.measure(encoders[0], config, context())}
    assert "batch 2, 16 + 0 tokens" in measured["peak_memory"].note
