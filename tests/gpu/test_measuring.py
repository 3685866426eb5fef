"""Decoding and ordering on the card give what they give on the processor."""

import pytest
import torch

from compress.backends.interface import OpenOptions
from compress.backends.opening import open_artifact
from compress.meters.timing import Shape, time_answer
from compress.models.spec import read_spec
from compress.prune.elimination import elimination_costs
from compress.records import Artifact
from tests.models.tiny import tiny_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_a_graph_writes_what_eager_steps_write(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    artifact = Artifact(key="model", kind="hf", path=tmp_path, spec=read_spec(tmp_path))
    backend = open_artifact(artifact, OpenOptions())
    ids = Shape(2, 8, 12).prompts(backend.vocabulary)
    mask = torch.ones_like(ids)
    eager = torch.cat(list(backend.greedy(ids, mask, 12)), dim=1)
    how = backend.prepare(2, 20)
    assert how == "CUDA graph", how
    assert torch.equal(torch.cat(list(backend.greedy(ids, mask, 12)), dim=1), eager)
    assert time_answer(backend, Shape(2, 8, 12)).per_token_ms > 0


def test_elimination_goes_in_the_order_of_the_processor():
    chance = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(512, 256, generator=chance), torch.randn(64, 256, generator=chance)
    gram, sensitivity = inputs.T @ inputs / 512, weight.T @ weight
    here = elimination_costs(gram, sensitivity, 1, 1e-4)
    there = elimination_costs(gram.cuda(), sensitivity.cuda(), 1, 1e-4)
    assert torch.equal(here.argsort(), there.argsort())
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-9)
