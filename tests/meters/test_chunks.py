"""How many positions a runtime is asked for at once, and which of them reach the head."""

import pytest
import torch

from compress.backends.huggingface import HuggingFaceBackend
from compress.backends.onnxruntime import OnnxRuntimeBackend
from compress.meters import divergence
from compress.meters.divergence import chunk_positions, score_text
from tests.meters.bigram import BigramBackend
from tests.models.tiny import tiny_model, token_ids


def pretended(vocabulary, on_cuda=False, fewest=1):
    backend = BigramBackend(torch.zeros(1, 1).expand(1, vocabulary))
    backend.on_cuda, backend.fewest_positions = on_cuda, fewest
    return backend


def test_a_runtime_that_copies_its_cache_reads_many_positions_at_once():
    export = pretended(128_256, fewest=OnnxRuntimeBackend.fewest_positions)
    assert chunk_positions(32, [export]) >= 32
    assert chunk_positions(32, [export, pretended(128_256, on_cuda=True)]) >= 32


def test_a_gpu_reads_sixteen_times_what_a_processor_reads():
    assert chunk_positions(32, [pretended(128_256)]) == 8
    assert chunk_positions(32, [pretended(128_256, on_cuda=True)]) == 65
    assert chunk_positions(32, [pretended(128_256, on_cuda=True), pretended(128_256)]) == 8


def test_pieces_of_a_large_chunk_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(7, (5, 12), generator=generator)
    batches = [(ids_BT, torch.ones_like(ids_BT))]
    teacher, student = BigramBackend.random(seed=1), BigramBackend.random(seed=2)
    expected = score_text(student, batches, teacher)
    student.fewest_positions = 8
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 5 * 7 * 3)
    found = score_text(student, batches, teacher)
    assert torch.equal(found.nats, expected.nats) and torch.equal(found.kl, expected.kl)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_only_what_is_asked_for_passes_through_the_head(family):
    backend = HuggingFaceBackend(tiny_model(family))
    ids_BT, mask_BT = token_ids(3, 10), torch.ones(3, 10, dtype=torch.int64)
    rows_N, columns_N = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([9, 3, 4, 0, 9])
    head = backend.model.get_output_embeddings()
    seen = []
    head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))

    def asked(chunk):
        seen.clear()
        parts = list(backend.logits_at(ids_BT, mask_BT, rows_N, columns_N, chunk))
        logits_NV = torch.zeros(5, 259)
        for which_M, logits_MV in parts:
            logits_NV[which_M] = logits_MV
        assert sorted(torch.cat([which_M for which_M, _ in parts]).tolist()) == [0, 1, 2, 3, 4]
        return logits_NV

    everything = torch.cat(list(backend.logits_chunks(ids_BT, mask_BT)), dim=1)[rows_N, columns_N]
    for chunk, sizes in ((256, [5]), (1, [3, 2])):
        torch.testing.assert_close(asked(chunk), everything, rtol=1e-4, atol=1e-4)
        assert seen == sizes
