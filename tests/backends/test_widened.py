"""Scores of narrow weights are computed in fp32 where a processor is slow in anything else."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.backends.interface import OpenOptions
from compress.backends.opening import open_artifact
from compress.models import device as devices
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.records import Artifact
from tests.models.tiny import tiny_model, token_ids


@pytest.fixture(params=["bfloat16", "float16"])
def narrow(request, tmp_path):
    tiny_model("llama").to(getattr(torch, request.param)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fast", [True, False])
def test_the_dtype_is_the_stored_one_only_where_that_is_fast(monkeypatch, fast):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: fast)
    assert devices.fast_dtype(torch.bfloat16, "cpu") == (torch.bfloat16 if fast else torch.float32)
    assert devices.fast_dtype(torch.float16, "cpu") == torch.float32
    assert devices.fast_dtype(torch.float16, "cuda") == torch.float16
    assert devices.fast_dtype(torch.float64, "cpu") == torch.float64


def test_widened_logits_are_those_of_plain_transformers_in_fp32(monkeypatch, narrow):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    plain = AutoModelForCausalLM.from_pretrained(narrow, dtype=torch.float32).eval()
    ids = token_ids(2, 9)
    with torch.inference_mode():
        expected = plain(ids).logits
    artifact = Artifact(key="narrow", kind="hf", path=narrow, spec=read_spec(narrow))
    backend = open_artifact(artifact, OpenOptions(device="cpu", widened=True))
    found = torch.cat(list(backend.logits_chunks(ids, torch.ones_like(ids))), 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert "float32" in backend.runtime
    stored = open_artifact(artifact, OpenOptions(device="cpu"))
    assert "float32" not in stored.runtime


def test_calibration_text_passes_a_narrow_model_in_fp32(monkeypatch, narrow):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    model = LayerwiseModel.open(narrow, layout(read_spec(narrow).config))
    assert model.dtype == torch.float32
