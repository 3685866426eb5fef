"""What shapes cost, computed together, against one layout, one model, at a time."""

import itertools
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from compress.models.checkpoint import auto_class, quiet
from compress.models.layout import layout
from compress.prune.shapes import Shapes, default_axes, length, shaped, sizes_along
from tests.models.tiny import DECODERS, ENCODERS, FAMILIES, VARIANTS, tiny_config, token_ids, variant_name

variants = pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
SIZES = {
    "layers": (1, 3, 4), "hidden": (16, 32, 40, 48, 56, 64), "ffn": (40, 101, 192), "kv_groups": (1, 2, 3, 4, 6, 8),
    "heads": (1, 2), "experts": (1, 2, 4, 6), "expert_ffn": (24, 48),
}  # fmt: skip


def every(model):
    """Some of the sizes along each axis, and the parent's."""
    axes = ("layers", *model.width_axes)
    return {axis: [n for n in SIZES[axis] if n <= length(model, axis)] for axis in axes}


def smaller(model, count=4):
    """Some shapes with all axes below the parent's, by chance."""
    shapes = Shapes(model, every(model))
    fractions = shapes.fractions().max(0)
    below = [index for index in range(len(shapes)) if fractions[index] < 1]
    chosen = random.Random(0).sample(below, min(count, len(below)))
    assert chosen
    return shapes, chosen


@variants
def test_parameters_are_those_of_the_layout(family, changes):
    model = layout(tiny_config(family, **changes))
    shapes, chosen = smaller(model, 20)
    params = shapes.params()
    assert len(params) == len(shapes)
    for index in chosen:
        assert params[index] == shapes.layout(index).num_parameters
        assert shapes.weight_bytes(2)[index] == 2 * params[index]


@variants
def test_shapes_are_all_that_transformers_accepts(family, changes):
    model = layout(tiny_config(family, **changes))
    sizes = every(model) | {"layers": [4]}
    grid = [dict(zip(sizes, lengths, strict=True)) for lengths in itertools.product(*sizes.values())]
    expected = [lengths for lengths in grid if shaped(model, lengths).refusal is None]
    shapes = Shapes(model, sizes)
    assert [shapes.lengths(i) for i in range(len(shapes))] == expected
    assert 0 < len(expected) <= len(grid)


def test_experts_shrink_to_sizes_that_can_be_multiplied_at_once():
    model = layout(tiny_config("qwen3_moe"))
    shapes = Shapes(model, {"expert_ffn": [20, 24, 48], "hidden": [36, 40, 64]})
    found = {(shapes.lengths(i)["expert_ffn"], shapes.lengths(i)["hidden"]) for i in range(len(shapes))}
    assert found == {(24, 40), (24, 64), (48, 40), (48, 64)}


def live(model, dtype=torch.float32):
    with quiet():
        config = AutoConfig.for_model(**model.config, attn_implementation="eager")
        made = auto_class(model.config).from_config(config, dtype=dtype)
    if model.num_experts:
        made.set_experts_implementation("eager")
    return made.eval()


@variants
def test_flops_are_those_that_are_counted_when_the_model_runs(family, changes):
    """Every one of 20 tokens is multiplied with all 20, also with those that the mask hides."""
    shapes, chosen = smaller(layout(tiny_config(family, **changes)))
    for index in chosen:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            live(shapes.layout(index))(token_ids())
        counted = counter.get_total_flops() / token_ids().numel()
        assert shapes.flops(20)[index] == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize("family", DECODERS)
def test_memory_is_the_weights_and_the_cache_that_the_model_keeps(family):
    model = layout(tiny_config(family) | ({"sliding_window": None} if family == "mistral" else {}))
    shapes, chosen = smaller(model)
    for index in chosen:
        made = live(shapes.layout(index), torch.bfloat16)
        with torch.no_grad():
            cache = made(token_ids(1, 7), use_cache=True).past_key_values
        kept = sum(t.numel() * 2 for layer in cache.layers for t in (layer.keys, layer.values))
        assert shapes.memory(2, 7)[index] == shapes.params()[index] * 2 + kept


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_keeps_no_cache(family):
    shapes, _ = smaller(layout(tiny_config(family)))
    assert (shapes.memory(2, 512) == shapes.weight_bytes(2)).all()


@pytest.mark.parametrize("family", DECODERS)
def test_bytes_read_for_a_token_are_its_weights_and_the_cache(family):
    model = layout(tiny_config(family))
    shapes, chosen = smaller(model)
    cache = shapes.memory(2, 100) - shapes.memory(2, 0)
    for index in chosen:
        assert shapes.decode_bytes(2, 100)[index] == shapes.flops(0)[index] + cache[index]
        parts = {kind: numbers[index] for kind, numbers in shapes.reads(100).items()}
        read = 2 * sum(parts[kind] for kind in ("attention", "mlp", "outside", "cache"))
        assert shapes.decode_bytes(2, 100)[index] == pytest.approx(read)


def test_the_costs_of_llama_8b_are_those_one_counts_by_hand():
    config = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    }  # fmt: skip
    shapes = Shapes(layout(config), {"layers": [32]})
    assert shapes.params()[0] == 8_030_261_248
    assert shapes.memory(2, 1024)[0] == 2 * 8_030_261_248 + 2 * 2 * 1024 * 32 * 8 * 128
    norms_and_embedding = 65 * 4096 + 128256 * 4096
    attention = 4 * 1024 * 32 * 4096
    assert shapes.flops(1024)[0] == 2 * (8_030_261_248 - norms_and_embedding) + attention


@pytest.mark.parametrize("family", FAMILIES)
def test_what_shrinks_by_default_is_everything_but_heads_inside_their_group(family):
    model = layout(tiny_config(family))
    assert set(default_axes(model)) == set(model.width_axes) - {"heads"}
    for axis in ("layers", *model.width_axes):
        sizes = sizes_along(model, axis, None)
        assert sizes == sorted(sizes) and sizes[-1] == length(model, axis) and sizes[0] >= 1
    assert sizes_along(model, "hidden", 24) == [24, 48, 64]
