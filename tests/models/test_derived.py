from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoConfig

from compress import plugins
from compress.errors import InputError
from compress.models.checkpoint import quiet
from compress.models.derived import derive_family, laid_out
from compress.models.family import Tensor, option
from compress.models.graph import meta_model, parsed
from compress.models.layout import layout
from compress.models.proof import EXACTLY, check_order_is_free, small_model
from compress.prune.kept import Kept
from compress.prune.slicing import SlicedWeights
from tests.models.tiny import FAMILIES, tiny_config

PARTICULARS = (
    "EPSILON", "NORM_OFFSET", "HEADS_DIVIDE_HIDDEN", "LINEAR_IS_IN_OUT", "LIVE", "EMBEDDING_TIMES_SQRT_HIDDEN",
    "RESIDUAL_ADDS", "ENCODER", "SKIPS_POSITIONS",
)  # fmt: skip

SIZES = {
    "vocab_size": 259, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip

UNKNOWN = {
    "cohere2": {},
    "exaone4": {},
    "glm": {},
    "granite": {"residual_multiplier": 0.3, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "helium": {},
    "nemotron": {},
    "olmo3": {},
    "smollm3": {},
    "stablelm": {"use_qkv_bias": True},
    "starcoder2": {},
    "vaultgemma": {},
}
"""Architectures without a family file, and settings worth trying."""


def unknown_config(name):
    declared = AutoConfig.for_model(name).to_dict()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {key: value for key, value in SIZES.items() if key in declared}
    return {"model_type": name, **ids, **sizes, **UNKNOWN[name]}


@cache
def derived(name):
    return derive_family(unknown_config(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_derived_is_what_the_family_file_says(name):
    config, family = tiny_config(name), plugins.load("models.families", name)
    found = derive_family(config)
    settings = {**family.DEFAULTS, **config}
    assert {n: row.axes for n, row in found.TENSORS.items()} == {
        n: row.axes for n, row in family.TENSORS.items() if row.exists(settings)
    }
    assert {p: getattr(found, p) for p in PARTICULARS} == {p: option(family, p) for p in PARTICULARS}
    assert laid_out(config, found).shapes() == layout(config).shapes()
    assert laid_out(config, found).heads_fill_hidden == layout(config).heads_fill_hidden


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_derived_family_has_the_sizes_of_transformers_at_every_width(name):
    whole = laid_out(unknown_config(name), derived(name))
    alone = {} if whole.heads_fill_hidden else {"hidden": 96}
    for lengths in ({}, {"ffn": 100}, alone, {"hidden": 64, "ffn": 64, "kv_groups": 2}):
        narrower = whole.to_lengths(lengths)
        assert narrower.refusal is None
        made = {n: tuple(p.shape) for n, p in meta_model(narrower.config).named_parameters()}
        assert narrower.shapes() == made


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("glm", {}),
        ("granite", {}),
        ("smollm3", {}),
        ("vaultgemma", {}),
        # Their head norms read the same epsilon over heads that stay as they are: see `compress.prune.slicing`.
        ("exaone4", {"rms_norm_eps": 1e-12}),
        ("olmo3", {"rms_norm_eps": 1e-12}),
    ],
)
def test_removing_dead_hidden_channels_changes_nothing(name, settings):
    """Of RMS-normed models: epsilon, the norms' offset and the embedding's factor must all be right for this."""
    family = derived(name)
    before = laid_out({**family.TINY, **settings}, family)
    after = before.to_lengths({"hidden": before.hidden // 2})
    model = small_model(before)
    stored = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for tensor, axes in before.tensors.items():
        if len(axes) > 1 and "hidden" in axes:  # what writes to and reads from the dead channels; norms stay
            stored[tensor].narrow(axes.index("hidden"), after.hidden, after.hidden).zero_()
    kept = Kept((0, 1), {"hidden": torch.arange(after.hidden)})
    sliced = SlicedWeights(stored, before, after, kept)
    weights = {tensor: sliced[tensor] for tensor in after.tensors}
    with quiet():
        narrow = (
            type(model)
            .from_pretrained(None, config=parsed(after.config), state_dict=weights, **EXACTLY)
            .eval()
        )
    ids = torch.randint(0, before.vocab, (2, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(narrow(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor", "row"),
    [
        ("gpt_neox", "attention.query_key_value.weight", (("query", "key_value", "key_value"), "hidden")),
        ("phi3", "self_attn.qkv_proj.weight", (("key_value", "key_value", "query"), "hidden")),
    ],
)
def test_a_wrong_table_does_not_survive_reordering(name, tensor, row):
    found = derive_family(tiny_config(name))
    where = laid_out(dict(found.TINY), found)
    model = small_model(where)
    check_order_is_free(where, model, "kv_groups")
    full = next(name for name in found.TENSORS if name.endswith(tensor))
    wrong = replace(where, family=replace(found, TENSORS={**found.TENSORS, full: Tensor(row)}))
    with pytest.raises(InputError, match="its kv_groups units depend on their order"):
        check_order_is_free(wrong, model, "kv_groups")


def test_settings_with_an_entry_a_layer_are_known():
    assert derived("smollm3").PER_LAYER == ("no_rope_layers",)
    assert derived("granite").PER_LAYER == ()
    alike = unknown_config("smollm3") | {"no_rope_layers": [1] * 4, "eos_token_id": [2, 3, 4, 5]}
    assert derive_family(alike).PER_LAYER == ("no_rope_layers",)


def test_a_configuration_may_leave_everything_to_the_defaults():
    family = derive_family({"model_type": "starcoder2"})
    assert laid_out({"model_type": "starcoder2"}, family).num_layers == 30
    assert family.TINY["num_hidden_layers"] == 2


def test_omitted_layer_types_are_filled_in():
    config = unknown_config("olmo3")
    types = derived("olmo3").layer_types(config)
    assert types == ["sliding_attention"] * 3 + ["full_attention"]
    assert laid_out(config, derived("olmo3")).with_layers([1, 3]).config["layer_types"] == [
        types[1],
        types[3],
    ]


def test_a_residual_that_is_scaled_is_not_added_as_it_is():
    assert not derived("granite").RESIDUAL_ADDS
    assert derived("starcoder2").RESIDUAL_ADDS


SMALL = {
    "vocab_size": 259,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gptj", "rotary_dim": 4}, "'gptj', and none can be derived: .* attention by themselves"),
        ({"model_type": "deepseek_v3", "num_key_value_heads": 8}, r"follow no axis.*kv_a_proj_with_mqa.* \(dim.* 0\)"),
        ({"model_type": "gpt_oss", "head_dim": 16}, "follow no axis known here: .*self_attn.sinks"),
        ({"model_type": "granitemoe", "num_local_experts": 4}, "experts are stored in one tensor"),
        ({"model_type": "mixtral", "num_key_value_heads": 4}, "stored under other names .*block_sparse_moe"),
        ({"model_type": "electra"}, "LayerNorm.* would be .*, transformers makes it"),
        ({"model_type": "lfm2", "intermediate_size": 192}, "would be .*, transformers makes it"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_refused_with_the_reason(config, message):
    with pytest.raises(InputError, match=message):
        derive_family(SMALL | config)


CTRL = {"model_type": "ctrl", "vocab_size": 259, "n_embd": 128, "dff": 96, "n_layer": 2, "n_head": 8}


def test_channels_with_fixed_positions_added_are_no_free_units():
    with pytest.raises(InputError, match="its hidden units depend on their order"):
        derive_family(CTRL)
