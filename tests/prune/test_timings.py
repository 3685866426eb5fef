"""Latency: what a token takes is measured on this machine, and decides the shape where it is the target."""

import numpy as np
import pytest

from compress import plugins
from compress.errors import InputError
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune import timings
from compress.prune.decoding import (
    KINDS,
    _at_depth,
    _depths,
    fitted,
    random_model,
    shapes_to_time,
    time_models,
)
from compress.prune.shapes import Shapes, sizes_along
from compress.prune.target import Target, shape_for
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.tiny import tiny_config
from tests.prune.checkpoints import prepared_context, tiny_parent

torch = pytest.importorskip("torch")


def told(tmp_path, **coefficients):
    """Timings as if they had been measured: what is not named costs nothing."""
    facts = {"context": 32, "coefficients": {"token": 0.0, **dict.fromkeys(KINDS, 0.0), **coefficients}}
    return Artifact(key="told", kind="timings", path=tmp_path, facts=facts)


def pruned_to_latency(use, parent, folder, latency, given, **settings):
    step = plugins.step(use)
    config = step.Config(target={"latency": latency, "context": 32}, compensate=False, tokens=96, **settings)
    scores = step.Config(target={"params": "50%"}, compensate=False, tokens=96)
    context = prepared_context(step, scores, parent, folder)
    context.inputs = {**context.inputs, "teacher": parent, "timings": given}
    return step.run(parent, config, context)


@pytest.mark.parametrize(
    ("kind", "axes"), [("layers", {"layers"}), ("mlp", {"ffn"}), ("attention", {"kv_groups"})]
)
def test_what_takes_the_time_is_what_goes(kind, axes, tmp_path):
    """With every other cost zero, halving the time halves that, whatever else stays."""
    parent = tiny_parent(tmp_path / "parent", "llama")
    before = layout(parent.spec.config)
    outcome = pruned_to_latency(
        "prune",
        parent,
        tmp_path / "out",
        "50%",
        told(tmp_path, **{kind: 1.0}),
        axes=("layers", "ffn", "kv_groups"),
    )
    after = layout(outcome.spec.config)
    reads = [timings.whole_reads(model, 32)[kind] for model in (after, before)]
    assert 0.3 < reads[0] / reads[1] <= 0.505
    other = Target(params="50%"), before, ("layers", "ffn", "kv_groups"), {}
    assert (after.num_layers, after.ffn, after.num_kv_heads) != (
        (by_params := shape_for(*other)).num_layers,
        by_params.ffn,
        by_params.num_kv_heads,
    )


@pytest.mark.parametrize(
    ("use", "kind"), [("prune.width", "mlp"), ("prune.depth", "layers"), ("prune.search", "mlp")]
)
def test_every_step_that_takes_a_latency_meets_it_and_records_what_it_became(use, kind, tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    few = {"candidates": 2, "trial_tokens": 64} if use == "prune.search" else {}
    given = told(tmp_path, **{kind: 0.001})
    outcome = pruned_to_latency(use, parent, tmp_path / "out", "75%", given, **few)
    found = outcome.facts["latency_ms"]
    assert found["predicted"] <= 0.7575 * found["parent_predicted"]
    assert found["measured"] > 0 and found["parent_measured"] > 0 and found["context"] == 32


def test_an_absolute_latency_is_in_milliseconds(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    outcome = pruned_to_latency("prune.depth", parent, tmp_path / "out", "3ms", told(tmp_path, layers=1.0))
    assert outcome.facts["layers"] == 3
    with pytest.raises(InputError, match="more than the parent's 4 ms"):
        pruned_to_latency("prune.depth", parent, tmp_path / "more", "5ms", told(tmp_path, layers=1.0))


def test_other_targets_prepare_no_timings_and_time_nothing(tmp_path):
    for use in ("prune", "prune.width", "prune.depth", "prune.search"):
        step = plugins.step(use)
        by_time = step.Config(target={"latency": "50%", "context": 64})
        by_size = step.Config(target={"params": "50%"})
        assert "timings" not in step.prepare(by_size)
        prepared = step.prepare(by_time)["timings"]
        assert prepared.use == "prune.timings" and prepared.config.context == 64
        assert step.shape_is_measured(by_time)
        assert step.shape_is_measured(by_size) == (use == "prune.search")


def test_the_machine_is_part_of_the_key(monkeypatch):
    here = timings.wanted_timings(Target(latency="50%"))["timings"].config
    assert here == timings.wanted_timings(Target(latency="50%"))["timings"].config
    assert here.hardware and here != timings.Config(context=1024, hardware="another machine")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2", "gemma2"])
def test_what_is_read_for_a_token_is_counted_once(family):
    before = layout(tiny_config(family))
    axes = ("layers", *before.width_axes)
    shapes = Shapes(before, {axis: sizes_along(before, axis, None) for axis in axes})
    reads = shapes.reads(40)
    whole = reads["attention"] + reads["mlp"] + reads["outside"]
    assert whole == pytest.approx(shapes.flops(0) / 2)
    assert whole + reads["cache"] == pytest.approx(shapes.decode_bytes(1.0, 40) - reads["cache"])
    assert all((amount >= 0).all() for amount in reads.values())


def test_attention_and_mlp_are_told_apart_by_hand():
    config = tiny_config("llama")
    reads = timings.whole_reads(layout(config), 10)
    H, F, L, V = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    assert reads["attention"] == L * H * width * (2 * heads + 2 * groups)
    assert reads["mlp"] == L * 3 * H * F
    assert reads["outside"] == V * H
    assert reads["cache"] == 10 * L * 2 * groups * width


def test_the_fit_finds_the_coefficients_that_made_the_times():
    before = layout(tiny_config("llama"))
    models = [before.with_layers(range(n)) for n in (1, 2, 3, 4)]
    models += [before.resized(**{axis: size}) for axis, size in (("hidden", 32), ("ffn", 48), ("ffn", 96))]
    models += [before.resized(num_kv_heads=n) for n in (1, 2)]
    reads = [timings.whole_reads(model, 500) for model in models]
    made = {"token": 0.5, "layers": 0.1, "attention": 2e-5, "mlp": 1e-5, "outside": 3e-5, "cache": 4e-6}
    times = [timings.token_times(made, read) for read in reads]
    found = fitted(reads, times)
    assert [timings.token_times(found, read) for read in reads] == pytest.approx(times, rel=1e-6)
    noisy = fitted(reads, np.array(times) * (1 + 0.1 * np.sin(np.arange(len(times)) * 7)))
    assert all(coefficient >= 0 for coefficient in noisy.values())


def test_timing_is_of_the_parent_and_of_smaller_shapes_that_transformers_accepts(tmp_path):
    for family in ("llama", "gpt2", "qwen3_moe", "gemma2"):
        parent = tiny_parent(tmp_path / family, family)
        models = shapes_to_time(parent.spec)
        assert models[0].num_parameters == parent.spec.num_parameters and len(models) >= 4
        assert all(model.refusal is None for model in models)
        assert all(model.num_parameters < models[0].num_parameters for model in models[1:])


def test_a_deeper_model_takes_longer_and_what_was_timed_is_fitted(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama", num_hidden_layers=12)
    before = layout(parent.spec.config)
    shallow, deep = time_models(
        parent.spec, [before.with_layers([0]), before], 16, FakeContext(tmp_path / "x")
    )
    assert deep > 2 * shallow > 0
    outcome = timings.run(parent, timings.Config(context=16), FakeContext(tmp_path / "timings"))
    first = outcome.facts["timed"][0]
    assert first["layers"] == 12 and first["fitted"] == pytest.approx(first["milliseconds"], rel=0.5)


def test_what_does_not_fit_is_timed_at_two_depths_and_added_up(monkeypatch):
    before = layout(tiny_config("llama", num_hidden_layers=32))
    monkeypatch.setattr("compress.prune.decoding._free_bytes", lambda: 1 << 40)
    assert _depths(before, 2, 8) == [32]
    monkeypatch.setattr("compress.prune.decoding._free_bytes", lambda: 8 * 2 * before.num_parameters)
    few = _depths(before, 2, 8)
    assert len(few) == 2 and 1 <= few[0] < few[1] < 32
    outside, each = 3.0, 0.25
    times = [outside + each * depth for depth in few]
    assert _at_depth(32, few, times) == pytest.approx(outside + 32 * each)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_a_random_model_has_the_shape_and_runs(family):
    before = layout(tiny_config(family))
    model = random_model(before, torch.bfloat16, "cpu")
    assert model.num_parameters() == before.num_parameters
    with torch.inference_mode():
        assert model(torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("bert", {"latency": "50%", "context": 32}, "bert models write no tokens one after another"),
        ("llama", {"latency": "50%", "context": 4096}, "the model reads 512 tokens"),
    ],
)
@pytest.mark.parametrize("use", ["prune", "prune.width", "prune.depth", "prune.search"])
def test_a_latency_that_cannot_be_timed_is_refused_when_planning(use, family, target, said, tmp_path):
    parent = tiny_parent(tmp_path / "parent", family)
    step = plugins.step(use)
    with pytest.raises(InputError, match=said):
        step.predict(read_spec(parent.path), step.Config(target=target))
