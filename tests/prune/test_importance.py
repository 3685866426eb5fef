"""What every metric promises, whatever its formula."""

import pytest
import torch
from safetensors.torch import load_file

from compress import plugins
from compress.errors import InputError
from compress.models.effort import flops_per_token
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune import scores as score_step
from compress.prune.backward import LossGradient
from compress.prune.importance import contiguous_block, iterative_loss
from compress.prune.interface import importance
from compress.prune.settings import SCORES, ScoreSettings
from compress.records import Work
from tests.fakes import FakeContext
from tests.models.tiny import FAMILIES, write_tiny
from tests.prune.checkpoints import calibration, observed, parent_of, scored, tiny_parent

METRICS = plugins.available("prune.importance")
metrics = pytest.mark.parametrize("name", METRICS)
ARCHITECTURES = ["llama", "gpt2", "gemma2", "qwen3_moe"]
"""Grouped and gated; fused and biased; norms behind the maps; experts."""


def sizes(model):
    """Every unit's shape of scores, for all the model has."""
    shapes = {
        "layers": (model.num_layers,),
        "hidden": (model.hidden,),
        "ffn": (model.num_layers, model.ffn),
        "kv_groups": (model.num_layers, model.num_kv_heads),
        "heads": (model.num_layers, model.num_kv_heads, model.heads_per_group),
        "experts": (model.num_layers, model.num_experts),
        "expert_ffn": (model.num_layers, model.num_experts, model.expert_ffn),
    }
    return {unit: shape for unit, shape in shapes.items() if unit == "layers" or unit in model.width_axes}


@pytest.mark.parametrize("family", FAMILIES)
@metrics
def test_every_unit_that_the_metric_knows_and_the_model_has_gets_a_score(name, family, tmp_path):
    folder = write_tiny(tmp_path / "model", family)
    scores = scored(name, observed(folder))
    expected = {unit: s for unit, s in sizes(layout(read_spec(folder).config)).items() if unit in units(name)}
    if name == "contiguous_block":
        expected["layers"] *= 2
    assert {unit: tuple(values.shape) for unit, values in scores.items()} == expected
    for unit, values in scores.items():
        assert values.dtype == torch.float64 and values.device.type == "cpu"
        assert bool((values >= 0).all())
        assert len(set(values[possible(name, unit, values)].tolist())) > 1


def units(name):
    return importance(name, []).UNITS


def possible(name, unit, values):
    """Where a score must be finite: everywhere, but for blocks that end behind the last layer, and the last layer."""
    if name == "contiguous_block":
        place = torch.arange(len(values))
        inside = place[:, None] + place < len(values)
        assert bool(values[~inside].isinf().all())
        return inside
    finite = values.isfinite()
    assert int((~finite).sum()) == (1 if name == "iterative_loss" else 0)
    return finite


@pytest.mark.parametrize("family", ARCHITECTURES)
@metrics
def test_streaming_changes_no_bit_and_batching_only_rounding(name, family, tmp_path):
    folder = tiny_parent(tmp_path / "model", family).path
    resident = scored(name, observed(folder))
    streamed, again = scored(name, observed(folder, resident=False)), scored(name, observed(folder))
    for unit, values in resident.items():
        assert torch.equal(values, streamed[unit]) and torch.equal(values, again[unit])
    for unit, values in scored(name, observed(folder, rows=3)).items():
        torch.testing.assert_close(values, resident[unit], rtol=1e-4, atol=1e-9)


def test_chance_follows_the_seed_and_nothing_else_does(tmp_path):
    folder = write_tiny(tmp_path / "model", "llama")
    for name in METRICS:
        one, other = (scored(name, observed(folder, seed=seed)) for seed in (1, 2))
        same = all(torch.equal(one[unit], other[unit]) for unit in one)
        assert same == (name != "random")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_backward_needs_the_weights_and_gradients_of_one_layer(family, tmp_path):
    text = observed(write_tiny(tmp_path / "model", family), resident=False)
    model, where = text.model.model, text.layout
    inside = sum(p.numel() for p in model.get_submodule(where.layers[0]).parameters())
    outside = where.num_parameters - 4 * inside
    parts = []

    def receive(name, weight, gradient):
        parts.append(name)
        living = sum(p.numel() for p in model.parameters() if not p.is_meta)
        assert weight.shape == gradient.shape == where.shapes()[name]
        assert living == outside + (0 if where.layer_of(name) is None else inside)

    LossGradient(text, receive).run()
    assert set(parts) == set(where.tensors)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_no_more_text_is_read_than_a_metric_asks_for(tmp_path, monkeypatch):
    parent = parent_of(write_tiny(tmp_path / "model", "llama"))
    inputs = {"calibration": calibration(tmp_path / "data")}
    monkeypatch.setattr(iterative_loss, "TOKENS", 40)
    for name, tokens in (("iterative_loss", 32), ("block_influence", 96)):
        config = ScoreSettings(importance=name)
        outcome = score_step.run(parent, config, FakeContext(tmp_path / name, inputs=inputs))
        assert outcome.facts == {"tokens": tokens}


@metrics
def test_the_estimate_counts_the_layers_that_run(name, tmp_path, monkeypatch):
    parent = parent_of(write_tiny(tmp_path / "model", "llama"))
    text, runs = observed(parent.path), []
    original = LayerwiseModel.run
    monkeypatch.setattr(LayerwiseModel, "run", lambda self, n, x: runs.append(n) or original(self, n, x))
    scored(name, text)
    passes = len(runs) / (4 * len(text.batches)) + (2 if name == "gradient" else 0)  # backward is two
    work = score_step.estimate(parent.spec, ScoreSettings(importance=name, tokens=text.num_tokens), {})
    beside = getattr(plugins.load("prune.importance", name), "beside", lambda *_: Work())
    expected = text.num_tokens * passes * flops_per_token(parent.spec)
    expected += beside(parent.spec, text.num_tokens).flops
    rel = 0.4 if name == "iterative_loss" else 1e-9  # depends on which layers go
    assert work.flops == pytest.approx(expected, rel=rel)


@metrics
def test_the_step_writes_what_the_metric_says(name, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "model", "llama"))
    inputs = {"calibration": calibration(tmp_path / "data")}
    for memory in ("ram", "stream"):
        context = FakeContext(tmp_path / memory, inputs=inputs, seed=3)
        score_step.run(parent, ScoreSettings(importance=name, memory=memory), context)
    one, other = (load_file(tmp_path / memory / SCORES) for memory in ("ram", "stream"))
    assert one.keys() == other.keys() and set(one) <= set(units(name))
    assert all(torch.equal(one[unit], other[unit]) for unit in one)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_block_that_goes_is_the_least_turning_and_never_the_last_layer(count):
    angles = torch.full((4, 4), torch.inf)
    for start in range(4):
        for length in range(1, 5 - start):
            angles[start, length - 1] = 10 - start - length / 10  # later blocks turn less
    expected = {4: [0, 1, 2, 3], 3: [0, 1, 3], 2: [0, 3], 1: [3]}
    assert contiguous_block.keep(angles, count) == expected[count]


def test_a_metric_for_other_units_is_refused_by_name():
    with pytest.raises(InputError, match="'block_influence' scores layers, not hidden"):
        importance("block_influence", ["hidden", "ffn"])
    with pytest.raises(InputError, match="did you mean 'activation'"):
        importance("activations", ["hidden"])
