"""Shapes and configurations written in the pipeline: a mistake says where it stands, and none is endless."""

import json

import pytest

from compress.digests import DigestMemo
from compress.errors import InputError
from compress.models.known import family_of
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline

SHAPE = {
    "model_type": "llama", "vocab_size": 259, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """What a plan without the hub says of a model written so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))

    def found(model, baseline=""):
        file = tmp_path / "my.yaml"
        file.write_text(
            f"version: 1\nname: mine\nmodel:\n{model}\n{baseline}steps: [{{name: q, use: quantize.rtn}}]\n"
        )
        with pytest.raises(InputError) as refused:
            make_plan(load_pipeline(file), DigestMemo(tmp_path / "digests"), assume=True)
        return str(refused.value)

    return found


@pytest.mark.parametrize("key", ["shape", "config"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000; each is listed"),
        ({"hidden_size": -1}, "hidden_size: -1"),
        ({"model_type": None}, "no 'model_type'"),
    ],
)
def test_a_mistake_in_a_shape_says_where_it_stands(key, changes, said, refusal):
    source = "  id: owner/of-nothing\n" if key == "shape" else "  tokenizer: bytes\n"
    told = refusal(f"{source}  {key}: {json.dumps(SHAPE | changes)}")
    assert "my.yaml:5:3: model." + key in told and said in told and told.count("my.yaml:") == 1


def test_of_a_baseline_too(refusal):
    model = f"  tokenizer: bytes\n  config: {json.dumps(SHAPE)}"
    rival = json.dumps({"name": "rival", "config": SHAPE | {"num_hidden_layers": 10**9}})
    assert "my.yaml:6:" in refusal(model, f"baselines: [{rival}]\n")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_local_experts"])
def test_a_number_without_end_is_refused_before_anything_is_traced(key):
    with pytest.raises(InputError, match=r"Allowed: 1 to (4,096|16,384)"):
        family_of({"model_type": "of nobody", key: 10**9})
