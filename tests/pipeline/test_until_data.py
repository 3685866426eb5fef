"""Data packed beforehand: up to it and no further, on a machine without GPUs, and found by one that has some."""

import pytest

from compress import api
from compress.errors import InputError
from compress.pipeline import keys
from compress.pipeline.schema import load_pipeline

FILE = """version: 1
name: small
model: demo
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 8}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
  recovery: {source: demo, sequence_length: 64, samples: 9}
evaluate: {tasks: [world_facts], samples: 4}
steps:
  - {name: narrow, use: prune.width, target: {params: '50%'}}
  - {name: recover, use: distill, tokens: 10k}
"""


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))
    (tmp_path / "p.yaml").write_text(FILE)
    return load_pipeline(tmp_path / "p.yaml")


def planned(pipeline, device, monkeypatch):
    monkeypatch.setattr(keys, "device_class", lambda: device)
    return {node.name: node for node in api.make_plan(pipeline).nodes}


def test_until_data_makes_it_and_what_it_needs_and_nothing_else(pipeline):
    done = []

    def listen(event):
        done.extend([event["node"]] if event["event"] == "done" else [])

    record = api.run(pipeline, until="recovery", listener=listen)
    assert record.status == "done"
    assert done == ["demo/tokenizer", "data/recovery"]
    done.clear()
    api.run(pipeline, until="recovery", listener=listen)
    assert not done  # it is there


def test_a_plan_cut_after_data_asks_for_nothing_a_gpu_is_good_for(pipeline):
    plan = api.make_plan(pipeline)
    cut = plan.until("calibration")
    assert [node.use for node in cut.nodes] == ["data.tokenizer", "data.pack"]
    assert [node.name for node in cut.missing(lambda _: False)] == ["demo/tokenizer", "data/calibration"]
    whole = {node.name for node in plan.missing(lambda _: False)}
    assert {"original", "narrow", "recover", "data/recovery", "data/calibration"} <= whole


def test_what_is_neither_a_step_nor_data_is_refused_naming_both(pipeline):
    with pytest.raises(InputError, match=r"did you mean 'recovery'.*Allowed: .*narrow.*recover, .*recovery"):
        api.run(pipeline, until="recovry")


def test_data_made_without_a_gpu_is_found_by_a_machine_with_some(pipeline, monkeypatch):
    here, there = (planned(pipeline, device, monkeypatch) for device in ("cpu", "NVIDIA H100 80GB HBM3"))
    by_use = {node.use: name for name, node in here.items()}
    for use in ("data.pack", "data.tokenizer", "data.tasks"):
        assert here[by_use[use]].key == there[by_use[use]].key, use
    assert here["recover"].key != there["recover"].key


def test_a_processors_build_of_torch_packs_the_same(pipeline, monkeypatch):
    here = planned(pipeline, "cpu", monkeypatch)
    versions = keys.package_versions

    def of_cuda(names):
        return {name: "2.13.0+cu130" if name == "torch" else found for name, found in versions(names).items()}

    monkeypatch.setattr(keys, "package_versions", of_cuda)
    there = planned(pipeline, "cpu", monkeypatch)
    assert here["data/recovery"].key == there["data/recovery"].key
    assert here["narrow"].key != there["narrow"].key


def test_what_is_downloaded_is_the_same_everywhere(monkeypatch):
    from compress.models import download

    config = download.Config(id="a/b", commit="0" * 40)

    def key(device):
        monkeypatch.setattr(keys, "device_class", lambda: device)
        return keys.ingredients("models.download", config, None, {}, 0, {"id": "a/b"})

    assert key("cpu") == key("NVIDIA H100 80GB HBM3")
