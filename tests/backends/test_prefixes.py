"""Rows that go on from a prefix have the logits they have when they are read whole."""

from functools import partial

import pytest
import torch

from compress.backends.huggingface import HuggingFaceBackend
from compress.backends.interface import Backend
from compress.backends.opening import open_artifact
from compress.backends.positions import padded
from compress.backends.prefixes import prefixed_batch
from compress.records import Artifact
from tests.models.tiny import DECODERS, tiny_model, token_ids, write_tiny

NUM_SHARED = (30, 30, 30, 19, 19, 5)
LENGTHS = (34, 31, 42, 20, 25, 11)
"""Three prefixes: longer than a window of 8, and shorter."""


def rows_of(num_shared=NUM_SHARED, lengths=LENGTHS):
    """Rows that begin alike where they share as much."""
    begin = dict(zip(dict.fromkeys(num_shared), token_ids(9, 64, seed=1).tolist(), strict=False))
    ends = token_ids(len(lengths), 64, seed=2).tolist()
    return [
        tuple(begin[num][:num] + end[: length - num])
        for num, length, end in zip(num_shared, lengths, ends, strict=True)
    ]


def places_of(rows, num_shared):
    """Every position behind the prefixes: row and column."""
    return torch.tensor(
        [(row, column) for row, ids in enumerate(rows) for column in range(num_shared[row], len(ids))]
    )


def gathered(parts, num, vocabulary):
    logits_NV = torch.full((num, vocabulary), torch.nan)
    for which_M, logits_MV in parts:
        logits_NV[which_M] = logits_MV
    return logits_NV


def both_ways(backend, rows, num_shared, chunk=256):
    """Return the logits behind the prefixes when these are read once, and when each row is read whole."""
    places = places_of(rows, num_shared)
    behind = places[:, 1] - torch.tensor(num_shared)[places[:, 0]]
    once = backend.logits_after(prefixed_batch(rows, num_shared), places[:, 0], behind, chunk)
    whole = backend.logits_at(*padded(rows, left=False), places[:, 0], places[:, 1], chunk)
    return [gathered(parts, len(places), backend.vocabulary) for parts in (once, whole)]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("attention", ["usual", "eager"])
def test_what_follows_a_prefix_has_the_logits_of_whole_rows(family, attention):
    model = tiny_model(family)
    if attention != "usual":
        model.set_attn_implementation(attention)
    backend = HuggingFaceBackend(model)
    assert backend.shares_prefixes
    once, whole = both_ways(backend, rows_of(), NUM_SHARED)
    torch.testing.assert_close(once, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(once.log_softmax(-1), whole.log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [2, 30, 31, 34, 40])
def test_windows_around_a_prefixs_end_change_nothing(window):
    backend = HuggingFaceBackend(tiny_model("gemma3_text", sliding_window=window))
    once, whole = both_ways(backend, rows_of(), NUM_SHARED)
    torch.testing.assert_close(once, whole, rtol=1e-4, atol=1e-4)


def test_columns_may_be_more_than_the_models_positions():
    """A batch is as wide as its longest prefix and its longest ending, which need not be of one row."""
    num_shared, lengths = (60, 60, 10, 10), (62, 64, 60, 61)
    backend = HuggingFaceBackend(tiny_model("gpt2", n_positions=64))
    once, whole = both_ways(backend, rows_of(num_shared, lengths), num_shared)
    torch.testing.assert_close(once, whole, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_passes_through_the_head():
    backend = HuggingFaceBackend(tiny_model("llama"))
    seen = []
    backend.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(output.shape[:-1].numel())
    )
    batch = prefixed_batch(rows_of(), NUM_SHARED)
    parts = list(backend.logits_after(batch, torch.tensor([0, 0, 5]), torch.tensor([0, 3, 2])))
    assert seen == [3] and sorted(torch.cat([which_M for which_M, _ in parts]).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                    "rope_theta": 10_000.0,
                    "original_max_position_embeddings": 32,
                },
            },
        ),
    ],
)
def test_rotations_that_depend_on_a_rows_length_are_read_whole(family, changes):
    assert not HuggingFaceBackend(tiny_model(family, **changes)).shares_prefixes


def test_states_that_are_no_keys_and_values_are_read_whole():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    kinds = ["conv", "full_attention"]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Lfm2ForCausalLM(Lfm2Config(vocab_size=259, num_hidden_layers=2, layer_types=kinds, **sizes))
    assert not HuggingFaceBackend(model).shares_prefixes


def test_positions_that_a_model_counts_itself_are_read_whole():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(
        BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=2, max_position_embeddings=64)
    )
    assert not HuggingFaceBackend(model).shares_prefixes


def test_an_encoder_has_no_prefixes(tmp_path):
    folder = write_tiny(tmp_path / "bert", "bert")
    assert not open_artifact(Artifact(key="b", kind="hf", path=folder)).shares_prefixes


def test_layers_that_round_by_the_rest_of_the_batch_are_read_whole():
    model = tiny_model("llama")
    model.is_loaded_in_8bit = True
    assert not HuggingFaceBackend(model).shares_prefixes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_backend_that_cannot_share_reads_every_row_whole(family):
    backend = HuggingFaceBackend(tiny_model(family))
    batch = prefixed_batch([(5, 6, 7, 8), (5, 6, 7, 9, 4), (3, 2, 8)], [3, 3, 1])
    rows_N, columns_N = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 0, 1])

    whole, once = (
        gathered(logits_after(batch, rows_N, columns_N), 4, backend.vocabulary)
        for logits_after in (partial(Backend.logits_after, backend), backend.logits_after)
    )
    torch.testing.assert_close(whole, once, atol=1e-4, rtol=0)
