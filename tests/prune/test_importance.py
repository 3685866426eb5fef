"""What every metric promises, whatever its formula."""

import pytest
import torch

from compress import plugins
from compress.errors import InputError
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune.importance import contiguous_block
from compress.prune.interface import importance
from tests.models.tiny import FAMILIES, write_tiny
from tests.prune.checkpoints import observed, tiny_parent

METRICS = plugins.available("prune.importance")
metrics = pytest.mark.parametrize("name", METRICS)
ARCHITECTURES = ["llama", "gpt2", "gemma2", "qwen3_moe"]
"""Grouped and gated; fused and biased; norms behind the maps; experts."""


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def score(name, calibration):
    return importance(name, []).score(calibration)


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
    scores = score(name, observed(folder))
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
    resident = score(name, observed(folder))
    streamed, again = score(name, observed(folder, resident=False)), score(name, observed(folder))
    for unit, values in resident.items():
        assert torch.equal(values, streamed[unit]) and torch.equal(values, again[unit])
    for rows in (1, 3):
        for unit, values in score(name, observed(folder, rows=rows)).items():
            torch.testing.assert_close(values, resident[unit], rtol=1e-4, atol=1e-9)


def test_chance_follows_the_seed_and_nothing_else_does(tmp_path):
    folder = write_tiny(tmp_path / "model", "llama")
    for name in METRICS:
        one, other = (score(name, observed(folder, seed=seed)) for seed in (1, 2))
        same = all(torch.equal(one[unit], other[unit]) for unit in one)
        assert same == (name != "random")


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
