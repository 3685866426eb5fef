"""Shapes: N tokens, D hidden size, V vocabulary."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from compress.data.batch import Batch
from compress.errors import InputError
from compress.models.checkpoint import quiet
from compress.train import head
from compress.train.head import OutputHead, check_documents_apart, output_head
from compress.train.objective import NextToken
from tests.models.tiny import TRAINABLE, tiny_model, token_ids


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


@pytest.mark.parametrize("family", TRAINABLE)
def test_models_of_all_families_read_the_texts_of_a_row_apart(family):
    check_documents_apart(tiny_model(family))


@pytest.mark.parametrize("kind", ["bloom", "falcon", "mamba"])
def test_a_model_that_reads_on_into_the_next_text_is_refused(kind):
    torch.manual_seed(0)
    with quiet():
        config = AutoConfig.for_model(
            kind, vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        )
        model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        InputError, match=f"'{kind}' does not read the texts of a row apart.*attend_across_documents"
    ):
        check_documents_apart(model)


def test_only_what_is_to_be_learned_counts():
    model, ids_BT = tiny_model("llama"), token_ids()
    learned_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    learned_BT[:, -3:] = True
    total, num_tokens = NextToken(model)(Batch(ids_BT, learned=learned_BT))
    logits_NV = model(input_ids=ids_BT).logits[:, -4:-1].flatten(0, 1)
    whole = functional.cross_entropy(logits_NV, ids_BT[:, -3:].flatten(), reduction="sum")
    assert num_tokens == 3 * len(ids_BT)
    torch.testing.assert_close(total, whole)


SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, logits_scaling=8.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5),
    ],
    ids=lambda config: config.model_type,
)
def test_logits_that_are_scaled_or_bent_are_learned_as_the_model_makes_them(config):
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids_BT = token_ids() % 64
    total, num_tokens = NextToken(model)(Batch(ids_BT))
    theirs = model(input_ids=ids_BT, labels=ids_BT).loss
    torch.testing.assert_close(total / num_tokens, theirs)
    weights = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(total / num_tokens, weights), torch.autograd.grad(theirs, weights), strict=True
    )
    for our, their in pairs:
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


def test_in_bf16_a_scale_that_is_no_power_of_two_is_known_too():
    torch.manual_seed(0)
    config = GraniteConfig(**SMALL, logits_scaling=6.0)
    with quiet():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert output_head(model).scale == 1 / 6
    assert not head._makes_its_logits(OutputHead(1 / 6.5, None), model)


def test_a_model_that_makes_logits_in_another_way_is_refused():
    model = tiny_model("llama")
    model.set_output_embeddings(nn.Sequential(model.get_output_embeddings(), nn.LogSoftmax(-1)))
    with pytest.raises(InputError, match="'llama' computes its logits by more than one linear layer"):
        output_head(model)
