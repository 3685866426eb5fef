"""Plans of models and text on the hub that are made without asking it: to look at, never to run."""

import pytest

from compress import api
from compress.data.sources import hf
from compress.digests import DigestMemo
from compress.engine.execute import Execution
from compress.errors import HubUnavailable, InputError
from compress.models import download
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline

PIPELINE = """
version: 1
name: away
model: {model}
data:
  calibration: {{source: hf, id: owner/text, sequence_length: 128, samples: 8}}
  heldout: {{source: hf, id: owner/text, split: test, sequence_length: 128, samples: 8}}
steps:
  - {{name: narrow, use: prune.width, target: {{params: 50%}}}}
"""
KNOWN = "{id: meta-llama/Llama-3.2-1B}"
SHAPE = """{id: owner/own, shape: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
  num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 512, torch_dtype: bfloat16}}"""


@pytest.fixture(autouse=True)
def unreachable(monkeypatch, tmp_path):
    """Have the hub be out of reach, whatever this machine's network."""

    def away(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", away)
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))


@pytest.fixture
def load(tmp_path):
    def load(model):
        file = tmp_path / "away.yaml"
        file.write_text(PIPELINE.format(model=model))
        return load_pipeline(file)

    return load


@pytest.fixture
def plan(load, tmp_path):
    def plan(model, **options):
        return make_plan(load(model), DigestMemo(tmp_path / "memo"), **options)

    return plan


def test_a_known_model_is_planned_by_the_shape_its_owner_published(plan):
    made = plan(KNOWN, assume=True)
    assert made["original"].spec.num_parameters == 1_235_814_400
    assert made["narrow"].spec.num_parameters < 0.51 * 1_235_814_400
    model, *data = made.assumed
    assert model.startswith("meta-llama/Llama-3.2-1B: its shape is as published")
    assert {each.partition(":")[0] for each in data} == {"data.calibration", "data.heldout"}


def test_what_is_to_be_run_asks_the_hub(load, plan):
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        plan(KNOWN)
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        api.run(load(KNOWN))


def test_no_such_plan_can_be_executed(plan, tmp_path):
    with pytest.raises(AssertionError, match="only to look at"):
        Execution(plan(KNOWN, assume=True), None, tmp_path, None, None, print)


def test_keys_of_such_a_plan_are_those_of_no_result(plan, monkeypatch):
    assumed = plan(KNOWN, assume=True)
    shape = download.published("meta-llama/Llama-3.2-1B")
    monkeypatch.setattr("compress.models.hub.fetch_config", lambda *_: (shape, "0" * 40))
    monkeypatch.setattr(hf, "_commit", lambda *_: "1" * 40)
    real = plan(KNOWN, assume=True)
    assert real.assumed == () and [node.name for node in real.nodes] == [node.name for node in assumed.nodes]
    assert real["narrow"].spec == assumed["narrow"].spec
    shared = {node.key for node in real.nodes} & {node.key for node in assumed.nodes}
    assert [node.name for node in real.nodes if node.key in shared] == [
        "data/tasks"
    ]  # made here, of nothing else


def test_a_shape_in_the_file_is_planned_with(plan, tmp_path):
    made = plan(SHAPE, assume=True)
    assert made["original"].spec.config["hidden_size"] == 64
    assert made.assumed[0].startswith("owner/own: its shape is as `shape` says it")


def test_a_shape_is_not_what_a_run_goes_by(plan):
    with pytest.raises(HubUnavailable):
        plan(SHAPE)


def test_a_model_of_unknown_shape_is_refused_with_the_way_out(plan):
    with pytest.raises(InputError, match=r"cannot be reached.*add `shape:` to it.*meta-llama/Llama-3.1-8B"):
        plan("{id: owner/own, family: llama}", assume=True)


def test_what_the_hub_does_not_have_is_no_matter_of_being_offline(plan, monkeypatch):
    def gone(*_):
        raise InputError("the hub has no model 'meta-llama/Llama-3.2-1B'")

    monkeypatch.setattr("compress.models.hub.fetch_config", gone)
    with pytest.raises(InputError, match="the hub has no model"):
        plan(KNOWN, assume=True)


def test_a_rehearsal_knows_the_family_of_a_known_model(plan):
    assert plan(KNOWN, rehearsal=True)["original"].spec.model_type == "llama"
    assert plan("{id: Qwen/Qwen3-8B}", rehearsal=True)["original"].spec.model_type == "qwen3"
    assert plan(SHAPE, rehearsal=True)["original"].spec.model_type == "llama"


def test_a_shape_says_nothing_about_a_folder(load):
    with pytest.raises(InputError, match="'shape' belongs to 'id' and says nothing about 'path'"):
        load("{path: ./m, shape: {model_type: llama}}")


PARAMETERS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}
"""As the hub counts them in the files (`num_parameters` of safetensors)."""


def test_published_shapes_have_the_published_numbers_of_parameters():
    assert set(download.names_published()) == set(PARAMETERS)
    for name, number in PARAMETERS.items():
        spec = download.predict(None, download.assumed(name, download.published(name)))
        assert spec.num_parameters == number and {t.dtype for t in spec.tensors.values()} == {"BF16"}
