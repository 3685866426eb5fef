"""The benchmark's Minitron rival computes what the paper and Model-Optimizer publish, shown by plain loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from compress.models.families import llama, qwen3
from tests.benchmarks.pruning import minitron
from tests.benchmarks.pruning.cutting import Cut, Shape, cut_model, whole

ROWS, LENGTH = 5, 7
CLOSE = {"rtol": 1e-5, "atol": 0.0}
"""Activations are fp32; only their sums are not."""
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture(params=[llama, qwen3], ids=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    config = AutoConfig.for_model(**{**request.param.TINY, **SIZES, **HEADS, "initializer_range": 0.3})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made


@pytest.fixture(name="rows_NT")
def _rows() -> Tensor:
    return torch.randint(50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(5))


def test_a_neuron_scores_the_root_over_samples_of_its_squared_mean_magnitude(model, rows_NT):
    expected = [
        [channel_score(seen, channel) for channel in range(96)]
        for seen in (inputs_of(block.mlp.down_proj, model, rows_NT) for block in model.model.layers)
    ]
    torch.testing.assert_close(minitron.scores(model, rows_NT).ffn, torch.tensor(expected).double(), **CLOSE)


def test_a_head_scores_the_length_of_its_channels_scores(model, rows_NT):
    expected = []
    for block in model.model.layers:
        seen = inputs_of(block.self_attn.o_proj, model, rows_NT)
        heads = [[channel_score(seen, head * 8 + channel) for channel in range(8)] for head in range(4)]
        expected.append([math.sqrt(sum(score**2 for score in head)) for head in heads])
    torch.testing.assert_close(
        minitron.scores(model, rows_NT).heads, torch.tensor(expected).double(), **CLOSE
    )


def test_a_hidden_channel_scores_the_sum_over_the_layers_norms(model, rows_NT):
    expected = torch.zeros(64, dtype=torch.float64)
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            seen = outputs_of(norm, model, rows_NT)
            expected += torch.tensor([channel_score(seen, channel) for channel in range(64)])
    torch.testing.assert_close(minitron.scores(model, rows_NT).hidden, expected, **CLOSE)


def test_a_layer_scores_one_minus_the_cosine_of_its_input_and_output(model, rows_NT):
    expected = []
    for block in model.model.layers:
        before, after = inputs_of(block, model, rows_NT), outputs_of(block, model, rows_NT)
        cosines = [
            float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
            for x, y in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        ]
        expected.append(1 - sum(cosines) / len(cosines))
    torch.testing.assert_close(
        minitron.scores(model, rows_NT).layers, torch.tensor(expected).double(), atol=1e-6, rtol=0
    )


def test_the_candidates_are_the_largest_shapes_that_fit(model):
    config = model.config.to_dict()
    whole_size = model.num_parameters()
    grid = [
        Shape(hidden, ffn, heads, 2, layers)
        for hidden, ffn, heads, layers in itertools.product((16, 32, 48, 64), (32, 64, 96), (2, 4), (1, 2, 3))
        # A quarter of every list of sizes is left out, rounded down: of these, one hidden size.
        if hidden > 16
    ]
    fitting = sorted(
        size for shape in grid if (size := shape.num_parameters(config)) <= 0.5 * whole_size * 1.01
    )
    found = minitron.largest_within(config, 0.5, 10, width=0.75, depth=0.75)
    assert [shape.num_parameters(config) for shape in found] == fitting[::-1][:10]


def test_query_heads_go_evenly_from_every_group_and_groups_stay(model):
    config = model.config.to_dict()
    found = minitron.Scores(
        hidden=torch.arange(64.0),
        ffn=torch.arange(96.0).repeat(3, 1),
        heads=torch.tensor([[1.0, 2.0, 9.0, 8.0]] * 3),
        layers=torch.tensor([0.5, 0.1, 0.4]),
    )
    cut = minitron.choose(found, Shape(32, 32, 2, 2, 2), config)
    assert cut.heads.tolist() == [[1, 2]] * 3
    assert cut.groups.tolist() == [[0, 1]] * 3
    assert cut.layers == [0, 2]
    assert cut.hidden.tolist() == list(range(32, 64))


def test_a_cut_that_removes_nothing_changes_nothing(model, rows_NT):
    same = cut_model(model, whole(model.config.to_dict()))
    torch.testing.assert_close(same(rows_NT).logits, model(rows_NT).logits)


def test_cutting_units_whose_weights_are_zero_changes_nothing(model, rows_NT):
    full = whole(model.config.to_dict())
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, 40:] = 0
            block.self_attn.o_proj.weight[:, 8:16] = 0
            block.self_attn.o_proj.weight[:, 24:] = 0
        for module in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            module.weight.zero_()
    cut = Cut(
        layers=[0, 2],
        hidden=full.hidden,
        ffn=full.ffn[:, :40],
        heads=torch.tensor([[0, 2]] * 3),
        groups=full.groups,
    )
    torch.testing.assert_close(cut_model(model, cut)(rows_NT).logits, model(rows_NT).logits)


def channel_score(seen_NTC: Tensor, channel: int) -> float:
    """sqrt(Σ_samples (mean_positions |a|)²), a number at a time."""
    total = 0.0
    for sample in seen_NTC:
        magnitude = 0.0
        for position in sample:
            magnitude += abs(float(position[channel]))
        total += (magnitude / len(sample)) ** 2
    return math.sqrt(total)


def inputs_of(module: torch.nn.Module, model: PreTrainedModel, rows_NT: Tensor) -> Tensor:
    return watch(module, model, rows_NT)[0]


def outputs_of(module: torch.nn.Module, model: PreTrainedModel, rows_NT: Tensor) -> Tensor:
    return watch(module, model, rows_NT)[1]


def watch(module: torch.nn.Module, model: PreTrainedModel, rows_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return what went in and out of a module, one row at a time: both ``[N, T, C]``."""
    before, after = [], []
    handle = module.register_forward_hook(
        lambda _, inputs, output: (before.append(inputs[0]), after.append(output))[0]
    )
    with torch.no_grad():
        for row_T in rows_NT:
            model(row_T[None])
    handle.remove()
    return torch.cat(before), torch.cat(after)
