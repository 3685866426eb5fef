import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from compress.errors import InputError
from compress.models.checkpoint import auto_class
from compress.models.layout import layout, spec_from_config
from tests.models.tiny import (
    FAMILIES,
    LLAMA_LIKES,
    LLAMA_VARIANTS,
    VARIANTS,
    tiny_config,
    variant_name,
    write_tiny,
)

variants = pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
llama_variants = pytest.mark.parametrize(("family", "changes"), LLAMA_VARIANTS, ids=variant_name)


def live(config):
    with torch.device("meta"):
        return auto_class(config).from_config(AutoConfig.for_model(**config))


def parameters(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}  # tied parameters are named once


def in_live_model(where):
    """The shapes of all parameters but experts', which a live model holds fused."""
    names = {name: name.rpartition(".") for name in where.shapes() if where.expert_of(name) is None}
    return {
        where.live(module) + dot + kind: where.shapes()[name] for name, (module, dot, kind) in names.items()
    }


@variants
def test_shapes_are_those_transformers_stores(family, changes, tmp_path):
    tensors = load_file(write_tiny(tmp_path, family, **changes) / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert layout(tiny_config(family, **changes)).shapes() == shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    config = {"model_type": family, "num_hidden_layers": 1}
    model, where = live(config), layout(config)
    outside = {name: shape for name, shape in parameters(model).items() if ".experts." not in name}
    assert in_live_model(where) == outside
    assert where.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_omitted_layer_types_are_those_of_transformers(family):
    configuration, where = AutoConfig.for_model(family), layout({"model_type": family})
    assert where.num_layers == configuration.num_hidden_layers
    expected = getattr(configuration, "layer_types", ["full_attention"] * where.num_layers)
    types = where.with_layers(range(where.num_layers)).config.get("layer_types")
    assert (types or ["full_attention"] * where.num_layers) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_saved_by_transformers_reads_the_same(family):
    config = tiny_config(family)
    saved = AutoConfig.for_model(**config).to_diff_dict()
    assert layout(saved).shapes() == layout(config).shapes()


@variants
def test_the_number_of_parameters_counts_tied_weights_once(family, changes):
    config = tiny_config(family, **changes)
    spec = spec_from_config(config, "BF16")
    assert spec.num_parameters == sum(p.numel() for p in live(config).parameters())
    assert spec.weight_bytes == 2 * spec.num_parameters


@llama_variants
def test_a_narrower_layout_is_a_model_transformers_can_build(family, changes):
    narrow = layout(tiny_config(family, **changes)).resized(hidden=48, ffn=80, num_kv_heads=2)
    model = live(narrow.config)
    assert narrow.shapes() == layout(narrow.config).shapes() == parameters(model)
    assert narrow.num_parameters == sum(p.numel() for p in model.parameters())
    assert model.model.norm.variance_epsilon == pytest.approx(1e-6 * 64 / 48)


def test_resizing_to_the_same_sizes_changes_nothing():
    whole = layout(tiny_config("llama"))
    assert whole.resized(hidden=64, ffn=192, num_kv_heads=4) is whole


def test_layers_keep_their_attention_types():
    config = tiny_config("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=2)
    kept = layout(config).with_layers([1, 2, 3])
    assert kept.config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert live(kept.config).config.layer_types == kept.config["layer_types"]
    assert layout(kept.config).with_layers([1]).config["layer_types"] == ["sliding_attention"]


@pytest.mark.parametrize("family", LLAMA_LIKES)
def test_module_names_lead_to_the_modules(family):
    config = tiny_config(family)
    model, where = live(config), layout(config)
    assert [model.get_submodule(name) for name in where.layers] == list(model.model.layers)
    for layer, attention, mlp in zip(
        model.model.layers, where.readers("query"), where.readers("ffn"), strict=True
    ):
        assert model.get_submodule(attention) is layer.self_attn.o_proj
        assert model.get_submodule(mlp) is layer.mlp.down_proj
    assert len(where.norms) == 2 * 4 + 1
    assert all(model.get_submodule(name).weight.shape == (64,) for name in where.norms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        (
            {"model_type": "xlm", "architectures": ["XLMWithLMHeadModel"]},
            "Known: bert, .* llama, mistral, .* qwen2, qwen3, qwen3_moe, roberta",
        ),
        ({"model_type": None}, "has no 'model_type'"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"hidden_size": "64"}, "hidden_size: '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"hidden_size": 60}, "8 attention heads divide; 60 is not"),
    ],
)
def test_a_wrong_configuration_is_explained(changes, message):
    with pytest.raises(InputError, match=message):
        layout(tiny_config("llama", **changes))


def test_tables_import_no_torch():
    code = (
        "import sys; from compress.models.layout import layout; from compress.models.families import qwen3;"
        "from compress.models import spec, hub; from compress.train import initialize;"
        "from compress.prune import width, depth;"
        "layout(qwen3.TINY); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
