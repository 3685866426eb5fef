"""The benchmark's Minitron rival cuts a Gemma 3 as it cuts a Llama: what is zero can go, and nothing else changes."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from compress.models.families import gemma3_text
from tests.benchmarks.pruning import minitron
from tests.benchmarks.pruning.cutting import Cut, Shape, cut_model, whole

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8}
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
NARROW = {"sliding_window": 4}
"""Shorter than the rows, so that a layer with the wrong kind of attention is seen."""


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    sizes = {**SIZES, **HEADS, **NARROW, "layer_types": KINDS, "tie_word_embeddings": request.param}
    config = AutoConfig.for_model(**{**gemma3_text.TINY, **sizes, "initializer_range": 0.3})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return made


@pytest.fixture(name="rows_NT")
def _rows() -> Tensor:
    return torch.randint(50, (5, 12), generator=torch.Generator().manual_seed(5))


def test_a_cut_that_removes_nothing_changes_nothing(model, rows_NT):
    same = cut_model(model, whole(model.config.to_dict()))
    torch.testing.assert_close(same(rows_NT).logits, model(rows_NT).logits)


def test_removing_hidden_channels_that_are_zero_everywhere_changes_nothing(model, rows_NT):
    kept = torch.cat([torch.arange(8), torch.arange(24, 48)])
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 8:24] = 0
        for block in model.model.layers:
            for writer in (block.self_attn.o_proj, block.mlp.down_proj):
                writer.weight[8:24] = 0
    cut = Cut(**{**vars(whole(model.config.to_dict())), "hidden": kept})
    smaller = cut_model(model, cut)
    assert smaller.config.hidden_size == 32
    torch.testing.assert_close(smaller(rows_NT).logits, model(rows_NT).logits, rtol=1e-4, atol=1e-4)


def test_layers_that_stay_keep_their_kind_of_attention(model, rows_NT):
    silence(model.model.layers[0])
    cut = Cut(**{**vars(whole(model.config.to_dict())), "layers": [1, 2, 3]})
    smaller = cut_model(model, cut)
    assert smaller.config.layer_types == KINDS[1:]
    torch.testing.assert_close(smaller(rows_NT).logits, model(rows_NT).logits)


def test_neurons_and_heads_whose_weights_are_zero_can_go(model, rows_NT):
    full = whole(model.config.to_dict())
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, 40:] = 0
            block.self_attn.o_proj.weight[:, 8:24] = 0
    cut = Cut(full.layers, full.hidden, full.ffn[:, :40], torch.tensor([[0, 3]] * 4), full.groups)
    torch.testing.assert_close(cut_model(model, cut)(rows_NT).logits, model(rows_NT).logits)


def test_hidden_channels_score_by_the_norms_that_attention_and_the_ffn_read(model, rows_NT):
    expected = torch.zeros(48, dtype=torch.float64)
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.pre_feedforward_layernorm):
            expected += torch.stack([seen.abs().mean(0) for seen in outputs(norm, model, rows_NT)]).norm(
                dim=0
            )
    torch.testing.assert_close(minitron.scores(model, rows_NT).hidden, expected, rtol=1e-5, atol=0)


def test_shapes_whose_heads_do_not_divide_the_hidden_size_are_no_candidates(model):
    config = model.config.to_dict()
    assert Shape(32, 96, 4, 1, 4).is_loadable(config)
    assert not Shape(32, 96, 3, 1, 4).is_loadable(config)


def silence(block: torch.nn.Module) -> None:
    """Make a layer add nothing: Gemma's norms multiply by one more than their weight."""
    with torch.no_grad():
        for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
            norm.weight.fill_(-1)


def outputs(module: torch.nn.Module, model: PreTrainedModel, rows_NT: Tensor) -> Iterable[Tensor]:
    """Return what a module gives for every row, fp64 ``[T, C]``."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output[0].double()))
    with torch.no_grad():
        for row_T in rows_NT:
            model(row_T[None])
    handle.remove()
    return seen
