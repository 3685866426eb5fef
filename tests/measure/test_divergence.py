import json
from math import exp, log

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from compress.data.tokens import PackedTokens
from compress.errors import DoesNotFit
from compress.measure import divergence
from compress.models.checkpoint import load_tokenizer
from compress.records import Artifact
from tests.meters.tiny_llama import write_llama


def by_name(measurements):
    return {m.name: m for m in measurements}


def test_a_student_is_held_against_the_original(original, student, text, context):
    given = context(text=text, original=original)
    measured = by_name(divergence.measure(student, divergence.Config(batch_size=4), given))
    rows_ST = PackedTokens.open(text.path).rows(0, 6)
    with torch.no_grad():
        p, q = (
            AutoModelForCausalLM.from_pretrained(model.path)(rows_ST).logits[:, :-1].double().log_softmax(-1)
            for model in (original, student)
        )
    kl = (p.exp() * (p - q)).sum(-1)
    assert measured["kl_divergence"].value == pytest.approx(float(kl.mean()), rel=1e-4)
    assert measured["kl_p99"].value == pytest.approx(float(kl.flatten().quantile(0.99)), rel=1e-3)
    assert measured["same_top_token"].value == pytest.approx(
        float((p.argmax(-1) == q.argmax(-1)).double().mean())
    )
    nats = -float(q.gather(-1, rows_ST[:, 1:, None]).mean())
    assert measured["perplexity"].value == pytest.approx(exp(nats), rel=1e-4)
    assert all(m.n == 6 * 59 for m in measured.values())
    assert given.reports[-1][:2] == (6, 6)


def test_perplexity_beside_the_originals_is_paired_by_sequence(original, student, text, context):
    given = context(text=text, original=original)
    measured = by_name(divergence.measure(student, divergence.Config(batch_size=4), given))
    rows_ST = PackedTokens.open(text.path).rows(0, 6)
    with torch.no_grad():
        before, after = (
            -AutoModelForCausalLM.from_pretrained(model.path)(rows_ST)
            .logits[:, :-1]
            .double()
            .log_softmax(-1)
            .gather(-1, rows_ST[:, 1:, None])[..., 0]
            for model in (original, student)
        )
    above = (after - before).mean(-1)  # of each sequence, all equally long
    interval = stats.t.interval(0.95, 5, loc=above.mean(), scale=stats.sem(above))
    ratio = measured["perplexity_ratio"]
    assert ratio.value == pytest.approx(exp(above.mean()), rel=1e-4)
    assert (ratio.low, ratio.high) == pytest.approx([exp(end) for end in interval], rel=1e-3)
    assert ratio.degrees == 5 and ratio.unit == "ratio"
    bits = after.sum() / log(2) / measured["bits_per_byte"].value  # is the number of bytes
    change = measured["bits_per_byte_change"]
    assert change.value == pytest.approx(float((after - before).sum() / log(2) / bits), rel=1e-3)
    assert change.low < change.value < change.high
    assert measured["bits_per_byte"].low < measured["bits_per_byte"].value < measured["bits_per_byte"].high


def test_the_original_has_no_divergence_from_itself(original, text, context):
    measured = divergence.measure(original, divergence.Config(), context(text=text, original=original))
    assert [m.name for m in measured] == ["perplexity", "bits_per_byte"]
    alone = divergence.measure(original, divergence.Config(), context("alone", text=text))
    assert alone == measured


def test_a_copy_of_the_original_does_not_diverge(original, text, context):
    copy = original.model_copy(update={"key": "copy"})
    measured = by_name(divergence.measure(copy, divergence.Config(), context(text=text, original=original)))
    assert measured["kl_divergence"].value == measured["kl_p99"].value == 0.0
    assert measured["same_top_token"].value == 1.0


def test_bits_per_byte_count_the_text_that_was_predicted(original, text, context):
    measured = by_name(divergence.measure(original, divergence.Config(sequences=2), context(text=text)))
    rows = PackedTokens.open(text.path).rows(0, 2)[:, 1:]
    num_bytes = sum(len(t.encode()) for t in load_tokenizer(original.path).batch_decode(rows))
    nats = log(measured["perplexity"].value) * rows.numel()
    assert measured["bits_per_byte"].value == pytest.approx(nats / log(2) / num_bytes)


def test_another_tokenizer_leaves_only_bits_per_byte(original, text, context, tmp_path):
    other = write_llama(tmp_path / "other", seed=3)
    settings = json.loads((other.path / "tokenizer.json").read_text())
    ids = settings["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (other.path / "tokenizer.json").write_text(json.dumps(settings))
    given = context(text=text, original=original)
    measured = divergence.measure(other, divergence.Config(batch_size=4), given)
    assert [m.name for m in measured] == ["bits_per_byte"]
    assert "tokenizer" in given.warnings[0]


def test_models_too_large_to_compare_are_refused(original, student, text, context):
    spec = {"config": {}, "tensors": {}, "num_parameters": 2**50}
    huge = Artifact(key="huge", kind="hf", path=student.path, spec=spec)
    with pytest.raises(DoesNotFit):
        divergence.measure(huge, divergence.Config(), context(text=text, original=original))
