import itertools

import pytest

from compress.errors import InputError
from compress.models.layout import layout
from compress.prune.shapes import default_alignment
from compress.prune.target import (
    TOLERANCE,
    Target,
    explicit_shape,
    parse_budget,
    parse_bytes,
    parse_milliseconds,
    shape_for,
)
from tests.models.tiny import LLAMA_LIKES, tiny_config

AXES = ("ffn", "kv_groups", "hidden")
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("50%", "50%"),
        ("62.5 %", "62.5%"),
        ("100%", "100%"),
        ("4.0B", 4 * 10**9),
        ("350M", 350 * 10**6),
        (1000, 1000),
    ],
)
def test_a_budget_is_a_share_or_a_count(written, meant):
    assert parse_budget(written) == meant


@pytest.mark.parametrize("written", ["0%", "101%", "half", "%", "-5%", 0, None, "1.5"])
def test_what_is_no_budget_is_refused_with_examples(written):
    with pytest.raises(ValueError, match=r"like (4\.0B or 350M, or a share like )?50%"):
        parse_budget(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("6GB", 6 * 10**9), ("500 MiB", 500 * 2**20), ("1.5gib", 3 * 2**29), (1000, 1000), ("50%", "50%")],
)
def test_an_amount_of_memory_is_a_share_or_bytes(written, meant):
    assert parse_bytes(written) == meant


@pytest.mark.parametrize("written", ["6 apples", "0GB", "GB", True, "-1GB", "0%"])
def test_what_is_no_amount_of_memory_is_refused_with_examples(written):
    with pytest.raises(ValueError, match=r"like 6GB or 500MiB, or a share like 50%|written like 50%"):
        parse_bytes(written)


def test_a_time_is_milliseconds_or_a_share():
    assert parse_milliseconds("20 ms") == 20.0 and parse_milliseconds("62.5%") == "62.5%"
    for written in ("20", "20s", "0ms", 20):
        with pytest.raises(ValueError, match="like 20ms, or a share like 50%"):
            parse_milliseconds(written)


@pytest.mark.parametrize("family", LLAMA_LIKES)
@pytest.mark.parametrize("budget", ["85%", "60%", "40%", 100_000])
def test_the_shape_is_the_cheapest_by_the_documented_rule(family, budget):
    model = layout(tiny_config(family))
    wanted = model.num_parameters * float(budget[:-1]) / 100 if isinstance(budget, str) else budget

    def cost(shape):
        kept = [shape.hidden / 64, shape.ffn / 192, shape.num_kv_heads / 4]
        return max(kept) - min(kept) + 10 * abs(shape.num_parameters / wanted - 1)

    every = [
        model.resized(hidden=h, ffn=f, num_kv_heads=g)
        for h, f, g in itertools.product(range(8, 65, 8), range(16, 193, 16), range(1, 5))
    ]
    fitting = [s for s in every if s.refusal is None and s.num_parameters <= wanted * (1 + TOLERANCE)]
    chosen = shape_for(Target(params=budget), model, AXES, {})
    assert cost(chosen) == pytest.approx(min(map(cost, fitting)))
    assert chosen.num_parameters <= wanted * (1 + TOLERANCE)


def test_llama_8b_at_half_gets_the_proportions_its_makers_chose_for_three_billion():
    half = shape_for(Target(params="50%"), layout(LLAMA_8B), AXES, {})
    assert (half.hidden, half.num_heads, half.num_kv_heads) == (3072, 24, 6)
    assert half.num_parameters == pytest.approx(0.5 * 8_030_261_248, rel=0.01)
    assert half.ffn % 256 == 0 and half.refusal is None


@pytest.mark.parametrize("budget", ["params", "memory", "flops", "latency"])
def test_a_full_budget_keeps_everything(budget):
    model = layout(tiny_config("llama"))
    assert shape_for(Target(**{budget: "100%"}), model, ("layers", *AXES), {}) is model


def test_only_the_chosen_axes_shrink_and_in_the_chosen_steps():
    model = layout(tiny_config("llama"))
    shape = shape_for(Target(params="70%"), model, ["ffn"], {"ffn": 48})
    assert (shape.hidden, shape.num_kv_heads) == (64, 4)
    assert shape.ffn % 48 == 0 and shape.ffn < 192


@pytest.mark.parametrize(
    ("axis", "length", "step"),
    [("hidden", 4096, 256), ("ffn", 14336, 256), ("hidden", 896, 64), ("hidden", 64, 8), ("ffn", 192, 16),
     ("hidden", 6, 1), ("kv_groups", 8, 2), ("kv_groups", 4, 1), ("layers", 32, 1), ("heads", 4, 1),
     ("experts", 128, 8), ("experts", 6, 1), ("expert_ffn", 768, 64)],
)  # fmt: skip
def test_alignment_adapts_to_the_size(axis, length, step):
    assert default_alignment(axis, length) == step


def test_heads_that_fill_the_hidden_size_go_whole():
    model = layout(tiny_config("gpt2"))
    shape = shape_for(Target(params="50%"), model, AXES, {})
    assert shape.hidden == shape.num_heads * 8 < 64 and shape.refusal is None


def test_an_impossible_budget_names_the_smallest_reachable():
    model = layout(tiny_config("llama"))
    smallest = model.resized(num_kv_heads=1).num_parameters
    with pytest.raises(
        InputError, match=rf"kv_groups to aligned sizes leaves at least {smallest // 1000}k parameters"
    ):
        shape_for(Target(params="50%"), model, ["kv_groups"], {})
    with pytest.raises(InputError, match=r"one layer still makes 82\.5k parameters \(35"):
        shape_for(Target(params="10%"), model, ["layers"], {})
    for axes in (AXES, ["layers"]):
        with pytest.raises(InputError, match="more than the parent's 230k; pruning only removes"):
            shape_for(Target(params=10**9), model, axes, {})


@pytest.mark.parametrize(
    ("budget", "unit"), [("memory", "GB"), ("flops", "FLOPs"), ("latency", "ms a token")]
)
def test_an_impossible_budget_of_any_kind_says_what_the_smallest_shape_still_costs(budget, unit):
    model = layout(tiny_config("llama"))
    with pytest.raises(InputError, match=rf"leaves at least \S+ {unit} \(\d+\.\d% of the parent\); raise"):
        shape_for(Target(**{budget: "1%"}), model, ("layers", *AXES), {})


def test_layers_come_nearest_to_the_budget_without_exceeding_it():
    model = layout(tiny_config("qwen3"))

    def layers_for(budget):
        return shape_for(Target(params=budget), model, ["layers"], {}).num_layers

    for kept in range(1, 5):
        size = model.with_layers(range(kept)).num_parameters
        assert layers_for(size) == kept
        assert layers_for(round(size / 1.005)) == kept
        assert kept == 1 or layers_for(round(size / 1.02)) == kept - 1


def test_explicit_sizes_are_taken_as_they_are():
    model = layout(tiny_config("llama"))
    shape = explicit_shape(model, {"ffn": 101, "kv_groups": 2, "layers": 3})
    assert (shape.hidden, shape.ffn, shape.num_kv_heads, shape.num_heads) == (64, 101, 2, 4)
    assert shape.num_layers == 3
    with pytest.raises(InputError, match=r"intermediate_size: 193 .* the parent's 192"):
        explicit_shape(model, {"ffn": 193})
    with pytest.raises(
        InputError, match="llama needs a hidden_size that its 8 attention heads divide; 60 is not"
    ):
        explicit_shape(model, {"hidden": 60})
    assert explicit_shape(layout(tiny_config("mistral")), {"hidden": 60}).hidden == 60


def test_explicit_query_heads_are_counted_in_the_whole_layer():
    model = layout(tiny_config("llama"))
    assert explicit_shape(model, {"heads": 4}).heads_per_group == 1
    shape = explicit_shape(model, {"heads": 6, "kv_groups": 3, "hidden": 48})
    assert (shape.num_heads, shape.num_kv_heads, shape.heads_per_group) == (6, 3, 2)
    with pytest.raises(InputError, match="num_attention_heads: 6 is no multiple of the 4 key-value heads"):
        explicit_shape(model, {"heads": 6})
    with pytest.raises(InputError, match="num_attention_heads: 12 is more than the parent's 8"):
        explicit_shape(model, {"heads": 12})
    with pytest.raises(InputError, match="6 for 2 key-value heads is 3 each, more than the parent's 2"):
        explicit_shape(model, {"heads": 6, "kv_groups": 2})
    with pytest.raises(InputError, match="num_experts: llama models have none of their own"):
        explicit_shape(model, {"experts": 2})


def test_experts_of_a_size_that_transformers_cannot_multiply_at_once_are_refused():
    model = layout(tiny_config("qwen3_moe"))
    with pytest.raises(InputError, match="moe_intermediate_size: 30 is no multiple of 8"):
        explicit_shape(model, {"expert_ffn": 30})
    with pytest.raises(InputError, match="hidden_size: 60 is no multiple of 8"):
        explicit_shape(model, {"hidden": 60})
    assert explicit_shape(model, {"expert_ffn": 24, "hidden": 40}).refusal is None


def test_where_every_head_has_its_own_keys_they_go_with_it():
    shape = explicit_shape(layout(tiny_config("gpt2")), {"heads": 6, "hidden": 48})
    assert (shape.num_heads, shape.num_kv_heads, shape.hidden) == (6, 6, 48)
