"""Pruning on a GPU, without one: every tensor is where what it meets is."""

import pytest
import torch

from compress import plugins
from compress.models import device
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune.calibration import Calibration
from compress.prune.scratch import Scratch
from tests.models.tiny import token_ids
from tests.prune.checkpoints import observed, pruned, scored, tiny_parent
from tests.prune.pretended import DEVICE, PretendedGPU

CASES = [("llama", "ram"), ("llama", "stream"), ("gpt2", "ram"), ("qwen3_moe", "stream"), ("bert", "stream")]


def test_the_pretended_gpu_refuses_what_a_real_one_would():
    with PretendedGPU():
        here, there = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
        assert here.device.type == "cpu" and there.device == (there @ there).device == DEVICE
        assert there.cpu().device.type == here.to(torch.float64).device.type == "cpu"
        assert here.to(there).device == torch.nn.Parameter(here.to("cuda")).device == DEVICE
        for mix in (lambda: here @ there, lambda: there + here, lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError):
            there.numpy()
        assert here.copy_(there).device.type == "cpu"


@pytest.mark.parametrize(
    ("family", "memory"), [("llama", "ram"), ("llama", "stream"), ("qwen3_moe", "stream")]
)
@pytest.mark.parametrize("name", plugins.available("prune.importance"))
def test_every_metric_scores_on_a_gpu_as_on_the_cpu(name, family, memory, tmp_path):
    folder = tiny_parent(tmp_path / "model", family).path  # in fp64, which fused experts do not have
    expected = scored(name, observed(folder))
    (tmp_path / "scratch").mkdir(exist_ok=True)
    with PretendedGPU() as gpu:
        where = layout(read_spec(folder).config)
        model = LayerwiseModel.open(folder, where, device="cuda", resident=memory == "ram")
        batches = [ids.to("cuda") for ids in token_ids(4, 12, seed=5).split(2)]
        scratch = Scratch(None if memory == "ram" else tmp_path / "scratch", "cuda")
        scores = scored(name, Calibration(model, batches, scratch))
        assert gpu.moved and all(values.device.type == "cpu" for values in scores.values())
    assert all(torch.equal(scores[unit], values) for unit, values in expected.items())


@pytest.mark.parametrize(("family", "memory"), CASES)
def test_refitting_on_a_gpu_writes_the_same_bytes(family, memory, tmp_path, monkeypatch):
    parent = tiny_parent(tmp_path / "parent", family)
    settings = {"target": {"params": "50%"}, "importance": "weight", "layer_importance": "block_influence"}
    pruned("prune", parent, tmp_path / "cpu", **settings, compensate=True)
    for place in ("compress.models.device", "compress.prune.calibration"):
        monkeypatch.setattr(f"{place}.default_device", lambda: "cuda")
    assert device.default_device() == "cuda"
    with PretendedGPU() as gpu:
        pruned("prune", parent, tmp_path / "gpu", **settings, compensate=True, memory=memory)
    assert gpu.moved
    for file in (tmp_path / "cpu").iterdir():
        assert (tmp_path / "gpu" / file.name).read_bytes() == file.read_bytes()
