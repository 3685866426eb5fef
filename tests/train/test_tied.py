from contextlib import nullcontext

import pytest
import torch

from compress.data.batch import Batch
from compress.train.objective import NextToken
from compress.train.tied import lookups_add_their_rows
from tests.models.tiny import tiny_model, token_ids


def gradients(sparse: bool, tied: bool, times: int = 1) -> dict[str, torch.Tensor]:
    student = tiny_model("llama", tie_word_embeddings=tied)
    embedding = student.get_input_embeddings()
    context = lookups_add_their_rows(student) if sparse else nullcontext()
    with context, torch.autograd.profiler.profile() as profile:
        for index in range(times):
            loss, _ = NextToken(student)(Batch(token_ids(seed=index)))
            loss.backward()
    assert not embedding.sparse
    written_whole = any(event.name == "aten::embedding_dense_backward" for event in profile.function_events)
    assert written_whole == (not (sparse and tied))
    return {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_the_same_and_only_a_tied_one_is_no_second_matrix(tied, times):
    ours, whole = gradients(True, tied, times), gradients(False, tied, times)
    for name, expected in whole.items():
        assert ours[name].layout == torch.strided
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6)
