import json

import pytest
import torch
from pydantic import ValidationError

from compress import plugins
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.prune import depth
from tests.models.tiny import LLAMA_LIKES, token_ids, variant_name, write_tiny
from tests.prune.checkpoints import logits, parent_of, pruned, tiny_parent

DIFFERENT = [
    *((family, {}) for family in LLAMA_LIKES),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
]
variants = pytest.mark.parametrize(("family", "changes"), DIFFERENT, ids=variant_name)
RUNS = [
    *((family, changes, {"layers": 2}) for family, changes in DIFFERENT),
    *((family, {}, {"params": "80%"}) for family in LLAMA_LIKES),
]
families = pytest.mark.parametrize("family", LLAMA_LIKES)


@pytest.mark.parametrize(("family", "changes", "target"), RUNS, ids=variant_name)
def test_the_prediction_is_what_is_written(family, changes, target, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family, **changes))
    outcome, config = pruned("prune.depth", parent, tmp_path / "pruned", target=target)
    predicted = depth.predict(parent.spec, config)
    assert outcome.spec == read_spec(tmp_path / "pruned")
    assert outcome.spec.tensors == predicted.tensors and outcome.spec.size == predicted.size
    model = load_model(tmp_path / "pruned")
    assert len(model.model.layers) == model.config.num_hidden_layers == outcome.facts["layers"]
    with torch.no_grad():
        again = model.generate(
            token_ids(), max_new_tokens=8, do_sample=False, use_cache=False, pad_token_id=0
        )
        assert torch.equal(
            again, model.generate(token_ids(), max_new_tokens=8, do_sample=False, pad_token_id=0)
        )


@families
@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_keeping_every_layer_returns_the_same_bytes(family, shard, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family, shard=shard))
    pruned("prune.depth", parent, tmp_path / "pruned", target={"layers": 4})
    for file in parent.path.glob("*.safetensors"):
        assert (tmp_path / "pruned" / file.name).read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "pruned/config.json").read_text()) == parent.spec.config


def make_identities(*layers):
    def change(model):
        for layer in layers:
            for writer in (
                model.model.layers[layer].self_attn.o_proj,
                model.model.layers[layer].mlp.down_proj,
            ):
                for parameter in writer.parameters():
                    parameter.zero_()

    return change


@variants
def test_layers_that_do_nothing_are_found_and_removing_them_changes_nothing(family, changes, tmp_path):
    parent = tiny_parent(tmp_path / "parent", family, make_identities(0, 2), **changes)
    outcome, _ = pruned("prune.depth", parent, tmp_path / "pruned", target={"layers": 2})
    assert outcome.facts["removed_layers"] == [0, 2]
    torch.testing.assert_close(logits(tmp_path / "pruned"), logits(parent.path), rtol=1e-12, atol=1e-12)
    content = json.loads((tmp_path / "pruned/pruning_map.json").read_text(), parse_constant=pytest.fail)[
        "layers"
    ]
    assert content["kept"] == [1, 3]
    assert content["scores"] == [pytest.approx(0, abs=1e-6), None, pytest.approx(0, abs=1e-6), None]


def test_each_layer_keeps_its_attention_type(tmp_path):
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    parent = tiny_parent(tmp_path / "parent", "qwen3", make_identities(1), **changes)
    pruned("prune.depth", parent, tmp_path / "pruned", target={"layers": 3})
    types = load_model(tmp_path / "pruned").config.layer_types
    assert types == ["full_attention", "sliding_attention", "sliding_attention"]
    torch.testing.assert_close(logits(tmp_path / "pruned"), logits(parent.path), rtol=1e-12, atol=1e-12)


def test_a_file_left_without_tensors_is_not_written(tmp_path):
    parent = tiny_parent(tmp_path / "whole", "llama", make_identities(0, 1, 2))
    load_model(parent.path).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    parent = parent_of(tmp_path / "shards")
    pruned("prune.depth", parent, tmp_path / "pruned", target={"layers": 1})
    before, after = (len(list(folder.glob("*.safetensors"))) for folder in (parent.path, tmp_path / "pruned"))
    assert 1 < after < before
    torch.testing.assert_close(logits(tmp_path / "pruned"), logits(parent.path), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", [{}, {"layers": 2, "params": "50%"}])
def test_a_target_is_layers_or_parameters(target):
    with pytest.raises(ValidationError, match=r"give either one of `params`, .* or sizes: layers"):
        depth.Config(target=target)


def test_what_cannot_be_planned_is_refused_before_running(tmp_path):
    spec = read_spec(write_tiny(tmp_path, "llama"))
    for settings, message in (
        ({"target": {"layers": 5}}, "target layers: 5 is more than the parent's 4"),
        ({"target": {"params": "10%"}}, "one layer still makes"),
        ({"target": {"intermediate_size": 64}}, "target intermediate_size: prune.depth removes whole layers"),
        ({"target": {"layers": 2}, "importance": "activation"}, "scores hidden, ffn, .*, not layers"),
    ):
        with pytest.raises(InputError, match=message):
            depth.predict(spec, depth.Config(**settings))


@families
def test_a_rehearsal_fits_the_tiny_model_of_every_family(family, tmp_path):
    config = depth.rehearse(depth.Config(target={"layers": 24}))
    spec = read_spec(write_tiny(tmp_path, family))
    assert depth.predict(spec, config).config["num_hidden_layers"] == 3


def test_the_step_fulfils_the_contract(tmp_path):
    spec = read_spec(write_tiny(tmp_path, "llama"))
    config = depth.Config(target={"layers": 2})
    assert plugins.references(depth.Config) == {"calibration": "data"}
    assert depth.estimate(spec, config, {}).disk_bytes == depth.predict(spec, config).weight_bytes
    assert all(field.description for field in depth.Config.model_fields.values())
