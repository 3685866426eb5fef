"""A teacher in host memory: the same numbers, two layers of it on the device at a time."""

import pytest
import torch
from pydantic import ValidationError

from compress.distill import offload, step
from compress.distill.offload import offload_layers
from tests.models.tiny import TRAINABLE, tiny_model
from tests.train.inputs import context, parent, payload

IDS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("family", TRAINABLE)
def test_it_computes_what_it_computed(family):
    model = tiny_model(family).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
        offload_layers(model, "cpu")
        for _ in range(2):
            assert torch.equal(model(input_ids=IDS, use_cache=False).logits, expected)


def test_two_places_take_all_layers_in_turn(monkeypatch):
    model = tiny_model("llama", num_hidden_layers=5).eval()
    seen, made = [], []
    place = offload._Turns.__post_init__

    def noting(self):
        place(self)
        made.append(self)

    monkeypatch.setattr(offload._Turns, "__post_init__", noting)
    offload_layers(model, "cpu")
    (turns,) = made
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda layer, _: seen.append((layer.mlp.up_proj.weight.data_ptr(), sorted(turns.copies)))
        )
    hosts = [layer.mlp.up_proj.weight.data_ptr() for layer in model.model.layers]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    assert [there for _, there in seen] == [[0, 1], [1, 2], [2, 3], [3, 4], [4]]
    pointers = [pointer for pointer, _ in seen]
    assert len(set(pointers)) == 2 and not set(pointers) & set(hosts)
    assert [layer.mlp.up_proj.weight.data_ptr() for layer in model.model.layers] == hosts


def test_a_pass_that_was_cut_short_does_not_spoil_the_next():
    model = tiny_model("llama", num_hidden_layers=4).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
        offload_layers(model, "cpu")

        def fails(*_):
            raise RuntimeError("out of memory")

        handle = model.model.layers[2].mlp.register_forward_pre_hook(fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(input_ids=IDS, use_cache=False)
        handle.remove()
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, expected)


def test_a_student_learns_the_same_from_it(tmp_path):
    model, teacher = parent(tmp_path / "parent"), parent(tmp_path / "teacher", seed=1)
    for device in ("auto", "offload"):
        config = step.Config(
            tokens=16 * 4 * 4, batch_tokens=16 * 4, hidden_weight=0.0, teacher="t", teacher_device=device
        )
        step.run(model, config, context(tmp_path / device, teacher=teacher))
    assert payload(tmp_path / "offload") == payload(tmp_path / "auto")


def test_a_rounded_teacher_is_not_offloaded():
    with pytest.raises(ValidationError, match=r"offload` is for weights as they are stored.*nf4"):
        step.Config(tokens=1, teacher_device="offload", teacher_precision="nf4")
