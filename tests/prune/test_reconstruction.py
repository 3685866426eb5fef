"""Layers of a pruned model, each trained by itself to end where the parent's ends."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compress import plugins
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec, stored_dtype
from compress.prune import compensation, reconstruction, width
from compress.prune.compensation import _worth
from tests.models.tiny import tiny_model, token_ids, write_tiny
from tests.prune import checkpoints
from tests.prune.checkpoints import parent_of, prepared_context, pruned
from tests.prune.test_compensation import Interrupted, Stopped, payload

HALF = {"target": {"params": "50%"}, "importance": "activation", "layer_importance": "block_influence"}
NARROWED = HALF | {"target": {"intermediate_size": 32}}
NARROW = {"qwen3_moe": {"moe_intermediate_size": 8}}
FAMILIES = ["llama", "gpt2", "gemma3_text", "qwen3_moe", "olmo2", "bert"]


def few_words(num, length, seed=0):
    """Rows of sixteen different ids: what is learned from some holds for others, too."""
    return 4 + token_ids(num, length, seed=seed) % 16


@pytest.fixture
def much_text(monkeypatch):
    monkeypatch.setattr(checkpoints, "token_ids", few_words)
    monkeypatch.setattr(checkpoints, "calibration", partial(checkpoints.calibration, num=96, length=16))


def logits(folder):
    """On rows that the student has not seen."""
    model = load_model(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=few_words(6, 32, seed=1)).logits


def check_training_brings_it_nearer(parent, target, folder):
    for steps in (0, 40):
        pruned("prune", parent, folder / str(steps), **target, compensate=True, reconstruct=steps)
    wanted = logits(parent.path)
    refitted, trained = (float((logits(folder / steps) - wanted).square().mean()) for steps in ("0", "40"))
    assert trained < refitted
    assert read_spec(folder / "0").tensors == read_spec(folder / "40").tensors


def warnings_of(parent, folder, steps, **settings):
    """What is said of a training that brings nothing; without training nothing is."""
    said = {}
    for number in (0, steps):
        step = plugins.step("prune")
        config = step.Config(**NARROWED, reconstruct=number, **settings)
        ready = prepared_context(step, config, parent, folder / str(number))
        step.run(parent, config, ready)
        said[number] = ready.warnings
    assert said[0] == []
    return said[steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_student_ends_nearer_to_its_parent(family, much_text, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family))
    target = HALF | {"target": NARROW.get(family, {"intermediate_size": 32})}
    check_training_brings_it_nearer(parent, target, tmp_path)


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3_moe"])
@pytest.mark.parametrize("target", [{"hidden_size": 48}, {"layers": 2}, {"params": "50%"}], ids=str)
def test_every_axis_can_be_trained_and_streaming_changes_no_byte(family, target, tmp_path, monkeypatch):
    """Whether or not it brings anything: what a random model has learned of its parent is no measure of that."""
    errors = count(0, -1)
    monkeypatch.setattr(reconstruction.Reconstruction, "_judge", lambda self, passage: next(errors))
    parent = parent_of(write_tiny(tmp_path / "parent", family, shard="150KB"))
    settings = {**HALF, "target": target, "compensate": True, "reconstruct": 3}
    for memory in ("stream", "ram"):
        pruned("prune", parent, tmp_path / memory, **settings, memory=memory)
    assert payload(tmp_path / "stream") == payload(tmp_path / "ram")
    pruned("prune", parent, tmp_path / "refitted", **{**settings, "reconstruct": 0})
    assert payload(tmp_path / "refitted") != payload(tmp_path / "ram")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_single_and_stored_as_it_was(dtype, much_text, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.models.layerwise.fast_dtype", lambda stored, device: stored)
    tiny_model("llama").to(dtype).save_pretrained(tmp_path / "parent")
    parent = parent_of(tmp_path / "parent")
    assert stored_dtype(parent.spec) == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    check_training_brings_it_nearer(parent, NARROWED, tmp_path)


def test_a_layer_that_training_makes_worse_stays_as_it_was_refitted(tmp_path, monkeypatch):
    wild = replace(reconstruction.Recipe(0), rate=50.0)
    monkeypatch.setattr(compensation, "Recipe", lambda steps: replace(wild, steps=steps))
    parent = parent_of(write_tiny(tmp_path / "parent", "llama"))
    said = warnings_of(parent, tmp_path, steps=5)
    assert payload(tmp_path / "0") == payload(tmp_path / "5")
    assert len(said) == 1 and "none of 4 trained layers came nearer" in said[0]


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(after, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", "llama"))
    settings = {**HALF, "target": {"intermediate_size": 64}, "reconstruct": 4}
    pruned("prune", parent, tmp_path / "undisturbed", **settings, compensate=True)
    step = plugins.step("prune")
    config = step.Config(**settings)
    ready = prepared_context(step, config, parent, tmp_path / "resumed")
    first = Interrupted(ready.folder, ready.partial, ready.inputs)
    first.after = after
    with pytest.raises(Stopped):
        step.run(parent, config, first)
    step.run(parent, config, ready)
    assert payload(ready.folder) == payload(tmp_path / "undisturbed")


def test_one_sequence_is_too_little_to_judge_by_and_nothing_is_trained(tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", "llama"))
    said = warnings_of(parent, tmp_path, steps=5, tokens=16)
    assert payload(tmp_path / "0") == payload(tmp_path / "5")
    assert len(said) == 1 and "nothing was trained" in said[0]


def test_a_stop_is_heeded_between_two_steps_of_a_layer():
    heeded = count()

    def heed():
        if next(heeded) == 3:
            raise Stopped

    layer, entering = nn.Linear(4, 4), torch.randn(9, 2, 4)
    model = SimpleNamespace(
        embed=lambda ids: None, run=lambda _, x: layer(x), device="cpu", dtype=torch.float32, layout=None
    )
    training = reconstruction.Reconstruction(model, [torch.zeros(9, 2)], reconstruction.Recipe(100), heed)
    training._trainable = lambda *_: nullcontext(dict(layer.named_parameters()))
    passage = reconstruction.Passage(0, layer, [entering], [entering], torch.arange(4), torch.ones(4))
    with pytest.raises(Stopped):
        training.improve(passage, {})
    assert next(heeded) == 4 and training.num_trained == 0


def test_what_is_not_refitted_is_not_trained():
    with pytest.raises(ValidationError, match="needs compensate: true"):
        width.Config(target={"params": "50%"}, compensate=False, reconstruct=10)


def test_training_is_planned(tmp_path):
    spec = parent_of(write_tiny(tmp_path / "parent", "llama")).spec
    without, few, many = (
        width.estimate(spec, width.Config(target={"params": "50%"}, reconstruct=steps), {})
        for steps in (0, 10, 20)
    )
    assert many.flops - few.flops == pytest.approx(few.flops - without.flops) and few.flops > without.flops
    assert few.peak_memory_bytes == many.peak_memory_bytes > without.peak_memory_bytes


def test_a_channel_is_worth_what_its_norm_lets_through():
    """Of an RMS norm, that is the square of its gain."""
    norm = tiny_model("llama").model.layers[0].input_layernorm
    with torch.no_grad():
        norm.weight.copy_(torch.rand(len(norm.weight)) + 0.1)
        hidden = 10 * torch.randn(4, 8, len(norm.weight)) * torch.rand(len(norm.weight))
        expected = norm.weight.square() / norm.weight.square().mean()
        torch.testing.assert_close(_worth(list(hidden.split(2)), list(norm(hidden).split(2))), expected)


@pytest.mark.parametrize("still", [0.0, 1e-6, 1e-3, 1e-2])
def test_a_layer_norms_bias_and_a_channel_that_is_still_are_no_worth(still):
    norm = nn.LayerNorm(64)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(64) + 0.1)
        norm.bias.fill_(1.0)
        hidden = 10 * torch.randn(4, 32, 64)
        hidden[..., 5] = still
        expected = norm.weight.square() / norm.weight.square().mean()
        found = _worth(list(hidden.split(2)), list(norm(hidden).split(2)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_a_channel_that_never_changes_counts_like_the_others():
    norm = tiny_model("llama").model.layers[0].input_layernorm
    with torch.no_grad():
        hidden = torch.randn(4, 8, len(norm.weight))
        hidden[..., 3] = 0
        expected = norm.weight.square()
        expected[3] = (expected.sum() - expected[3]) / (len(expected) - 1)
        torch.testing.assert_close(_worth([hidden], [norm(hidden)]), expected / expected.mean())
