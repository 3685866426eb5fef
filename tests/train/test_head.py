"""Shapes: N tokens, D hidden size, V vocabulary."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GraniteConfig

from compress.data.batch import Batch
from compress.errors import InputError
from compress.models.checkpoint import quiet
from compress.train import head as heads
from compress.train.head import plain_head, project, tile_tokens, tiled_loss
from compress.train.objective import NextToken
from tests.models.tiny import TRAINABLE, tiny_model, token_ids

N, D, V = 70, 6, 11


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(heads, "TILE_BYTES", {"cpu": 4 * V * 16})


@pytest.mark.parametrize("bias", [False, True])
def test_a_tiled_loss_and_its_gradients_are_those_of_the_whole(small_tiles, bias):
    torch.manual_seed(0)
    layer = nn.Linear(D, V, bias=bias, dtype=torch.float64)
    hidden_ND = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    targets_N = torch.randint(0, V, (N,))
    inputs = [hidden_ND, *layer.parameters()]

    tiled = tiled_loss(
        hidden_ND,
        layer,
        lambda logits_NV, rows: functional.cross_entropy(logits_NV, targets_N[rows], reduction="none"),
    )
    whole = functional.cross_entropy(layer(hidden_ND), targets_N, reduction="sum")
    assert tile_tokens(V, "cpu") == 16  # five tiles, the last one shorter
    torch.testing.assert_close(tiled, whole)
    ours, theirs = torch.autograd.grad(3 * tiled, inputs), torch.autograd.grad(3 * whole, inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_without_gradients_the_loss_is_the_same():
    layer, hidden_ND = nn.Linear(D, V), torch.randn(N, D)
    with torch.no_grad():
        total = tiled_loss(hidden_ND, layer, lambda logits_NV, rows: logits_NV.logsumexp(-1))
        torch.testing.assert_close(total, layer(hidden_ND).logsumexp(-1).sum())


def test_logits_under_autocast_are_fp32_and_closer_than_rounded_ones():
    torch.manual_seed(0)
    hidden_ND, weight_VD = torch.randn(N, 64), torch.randn(V, 64)
    exact_NV = hidden_ND.double() @ weight_VD.double().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours_NV = project(hidden_ND, weight_VD)
        rounded_NV = functional.linear(hidden_ND, weight_VD)
    assert ours_NV.dtype == torch.float32 and rounded_NV.dtype == torch.bfloat16
    assert (ours_NV - exact_NV).norm() < 0.9 * (rounded_NV - exact_NV).norm()


def test_outside_autocast_products_are_exact_and_the_backend_is_left_as_it_was():
    before = torch.backends.mkldnn.matmul.fp32_precision
    hidden_ND, weight_VD = torch.randn(N, 64), torch.randn(V, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        project(hidden_ND, weight_VD)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.equal(project(hidden_ND, weight_VD), functional.linear(hidden_ND, weight_VD))


@pytest.mark.parametrize("family", TRAINABLE)
def test_next_token_loss_is_the_one_transformers_computes(family):
    model, ids_BT = tiny_model(family), token_ids()
    total, num_tokens = NextToken(model)(Batch(ids_BT))
    assert num_tokens == ids_BT[:, 1:].numel()
    torch.testing.assert_close(total / num_tokens, model(input_ids=ids_BT, labels=ids_BT).loss)


@pytest.mark.parametrize("family", TRAINABLE)
def test_packed_documents_teach_what_they_teach_alone(family):
    model, ids_BT = tiny_model(family), token_ids()
    length = ids_BT.shape[1]
    starts = [0, 5, length]
    positions_BT = torch.cat([torch.arange(b - a) for a, b in pairwise(starts)]).expand_as(ids_BT)
    packed, num_packed = NextToken(model)(Batch(ids_BT, positions_BT))
    alone = [NextToken(model)(Batch(ids_BT[:, a:b])) for a, b in pairwise(starts)]
    assert num_packed == sum(count for _, count in alone)
    torch.testing.assert_close(packed, sum(loss for loss, _ in alone))


def test_only_what_is_to_be_learned_counts():
    model, ids_BT = tiny_model("llama"), token_ids()
    learned_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    learned_BT[:, -3:] = True
    total, num_tokens = NextToken(model)(Batch(ids_BT, learned=learned_BT))
    logits_NV = model(input_ids=ids_BT).logits[:, -4:-1].flatten(0, 1)
    whole = functional.cross_entropy(logits_NV, ids_BT[:, -3:].flatten(), reduction="sum")
    assert num_tokens == 3 * len(ids_BT)
    torch.testing.assert_close(total, whole)


def test_a_model_that_scales_its_logits_is_refused():
    config = GraniteConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    with quiet():
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="'granite' computes its logits by more than one linear layer"):
        plain_head(model)
