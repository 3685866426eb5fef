"""A model run one layer at a time computes what the whole model computes, with the weights of one layer at a time."""

import pytest
import torch

from compress.models import device as devices
from compress.models.checkpoint import load_model
from compress.models.layerwise import LayerwiseModel, fused_experts, separate_experts
from compress.models.layout import layout
from compress.models.spec import read_spec
from tests.models.tiny import FAMILIES, VARIANTS, token_ids, variant_name, write_tiny

variants = pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
LONG, SHORT = token_ids(3, 20), token_ids(2, 7, seed=1)
"""Twenty tokens are more than the sliding windows of 8 and 16 hold."""


def opened(folder, *, resident):
    return LayerwiseModel.open(folder, layout(read_spec(folder).config), resident=resident)


@torch.inference_mode()
def logits(model, *batches):
    """All batches pass a layer before it is let go."""
    states = [model.embed(ids) for ids in batches]
    for number in range(model.num_layers):
        with model.layer(number):
            states = [model.run(number, state) for state in states]
    return [model.logits(ids, state) for ids, state in zip(batches, states, strict=True)]


@variants
def test_logits_are_the_whole_models_bit_for_bit(family, changes, tmp_path):
    folder = write_tiny(tmp_path / "model", family, shard="150KB", **changes)
    whole = load_model(folder)
    with torch.inference_mode():
        expected = [whole(ids).logits for ids in (LONG, SHORT)]
    for resident in (True, False):
        model = opened(folder, resident=resident)
        for _ in range(2):  # nothing is left over from the first time
            found = logits(model, LONG, SHORT)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_it_runs_in_the_dtype_that_is_stored_where_that_is_fast(family, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    folder = write_tiny(tmp_path / "model", family)
    whole = load_model(folder, dtype=dtype)
    whole.save_pretrained(folder)
    if dtype == torch.float64 and family == "qwen3_moe":
        whole.set_experts_implementation("eager")  # the fused one has no fp64
    with torch.inference_mode():
        expected = whole(LONG).logits
    (found,) = logits(opened(folder, resident=False), LONG)
    assert found.dtype == dtype and torch.equal(found, expected)


def living(model):
    """How many of a module's numbers take memory."""
    return sum(p.numel() for p in model.parameters() if not p.is_meta)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_one_layers_weights_are_there_at_a_time(family, tmp_path):
    folder = write_tiny(tmp_path / "model", family)
    model = opened(folder, resident=False)
    inside = sum(p.numel() for p in model.model.get_submodule(model.layout.layers[0]).parameters())
    outside = model.layout.num_parameters - 4 * inside
    assert living(model.model) == outside
    for number in (2, 0, 3):
        with model.layer(number) as module:
            assert living(module) == inside and living(model.model) == outside + inside
        assert living(module) == 0 and living(model.model) == outside
    with pytest.raises(RuntimeError), model.layer(1):
        raise RuntimeError
    assert living(model.model) == outside
    assert living(opened(folder, resident=True).model) == model.layout.num_parameters


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "olmoe"])
def test_a_layer_can_be_given_other_weights(family, tmp_path):
    """By the names they are stored under, experts one by one."""
    folders = [write_tiny(tmp_path / name, family) for name in ("a", "b")]
    other = load_model(folders[1])
    with torch.no_grad():
        for parameter in other.get_submodule(layout(read_spec(folders[1]).config).layers[2]).parameters():
            parameter.mul_(1.5)
    other.save_pretrained(folders[1])
    with torch.inference_mode():
        expected = other(LONG).logits
    one, two = (opened(folder, resident=True) for folder in folders)
    assert not torch.equal(logits(one, LONG)[0], expected)
    weights = two.weights(2)
    assert list(weights) == [name for name in two.layout.tensors if two.layout.layer_of(name) == 2]
    one.assign(2, weights)
    assert torch.equal(logits(one, LONG)[0], expected)


@pytest.mark.parametrize("family", ["llama", "olmoe"])
def test_fused_experts_can_be_taken_apart_again(family, tmp_path):
    model = opened(write_tiny(tmp_path / "model", family), resident=True)
    stored = model.weights(1)
    state = {name.removeprefix(model.layout.layers[1] + "."): weight for name, weight in stored.items()}
    again = separate_experts(fused_experts(state))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_nothing_asks_for_gradients_and_no_layer_drops_anything(tmp_path):
    model = opened(write_tiny(tmp_path / "model", "llama", attention_dropout=0.5), resident=True)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert torch.equal(*(logits(model, LONG)[0] for _ in range(2)))
