"""What a batch becomes that memory is too small for."""

import errno

import pytest
import torch

from compress.errors import DoesNotFit, is_out_of_memory
from compress.meters import divergence
from compress.meters.divergence import score_text
from compress.meters.halving import halved, in_parts
from compress.meters.lm_eval_model import BackendLM
from tests.meters.bigram import BigramBackend
from tests.meters.test_lm_eval_model import PAIRS, requests

FULL = RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 8"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_too_small_is_known_in_every_librarys_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        ValueError("out of memory"),
        DoesNotFit("out of memory"),
        OSError(errno.ENOSPC, "out of memory"),
    ],
)
def test_what_only_speaks_of_memory_is_another_error(error):
    assert not is_out_of_memory(error)


def holding(most, seen):
    def work(size):
        seen.append(size)
        if size > most:
            raise FULL
        return f"{size} done"

    return work


def test_a_batch_is_halved_until_it_fits():
    seen = []
    assert halved(holding(3, seen), 9) == ("2 done", 2)
    assert seen == [9, 4, 2]


def test_one_alone_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="out of memory"):
        halved(holding(0, []), 4)


def test_other_errors_halve_nothing():
    seen = []

    def work(size):
        seen.append(size)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        halved(work, 4)
    assert seen == [4]


def test_a_batch_is_read_in_parts_that_fit_none_larger_than_one_before():
    seen, heard = [], []

    def work(start, stop):
        seen.append((start, stop))
        if stop - start > 2:
            raise FULL
        return [*range(start, stop)]

    assert [*in_parts(work, 5, heard.append)] == [[0, 1], [2, 3], [4]]
    assert seen == [(0, 5), (0, 2), (2, 4), (4, 5)] and len(heard) == 1
    assert [*in_parts(work, 0, heard.append)] == []


class Small:
    """A backend with room for so many sequences; it runs out in the middle of a batch."""

    def __init__(self, backend, room):
        self._backend, self._room = backend, room
        self.sizes = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def _check(self, ids_BT):
        self.sizes.append(len(ids_BT))
        if len(ids_BT) > self._room:
            raise FULL

    def logits_at(self, ids_BT, mask_BT, rows_N, columns_N, chunk):
        given = self._backend.logits_at(ids_BT, mask_BT, rows_N, columns_N, chunk)
        yield next(given)
        self._check(ids_BT)
        yield from given

    def logits_chunks(self, ids_BT, mask_BT, chunk):
        given = self._backend.logits_chunks(ids_BT, mask_BT, chunk)
        yield next(given)
        self._check(ids_BT)
        yield from given

    def greedy(self, ids_BT, mask_BT, new_tokens):
        for number, next_B1 in enumerate(self._backend.greedy(ids_BT, mask_BT, new_tokens)):
            if number == 1:
                self._check(ids_BT)
            yield next_B1


@pytest.fixture
def small_chunks(monkeypatch):
    """Batches of several chunks, so that memory can run out between two."""
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 1)


@pytest.mark.usefixtures("small_chunks")
def test_answers_are_the_same_of_batches_that_were_halved_and_the_record_says_so(backend, tokenizer):
    small = Small(backend, room=2)
    lm, expected = BackendLM(small, tokenizer, 8), BackendLM(backend, tokenizer, 2)
    assert [p for p, _ in lm.loglikelihood(requests(PAIRS))] == pytest.approx(
        [p for p, _ in expected.loglikelihood(requests(PAIRS))], abs=1e-4
    )
    assert small.sizes[:3] == [6, 3, 1] and set(small.sizes[3:]) == {1}
    (said,) = lm.gave_way
    assert said == "memory was too small for 6 sequences at once: 1 were read (the last digits differ)"


def test_written_answers_are_halved_too(backend, tokenizer):
    asked = requests(
        [(text, {"until": ["."], "max_gen_toks": 5}) for text in ("a", "bb", "ccc", "dddd", "e")]
    )
    small = Small(backend, room=2)
    lm = BackendLM(small, tokenizer, 5)
    assert lm.generate_until(asked) == BackendLM(backend, tokenizer, 5).generate_until(asked)
    assert small.sizes == [5, 2, 2, 1] and len(lm.gave_way) == 1


@pytest.mark.usefixtures("small_chunks")
def test_scores_of_a_text_are_those_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(7, (5, 12), generator=generator)
    batches = [(ids_BT, torch.ones_like(ids_BT)), (ids_BT[:3], torch.ones(3, 12, dtype=torch.int64))]
    teacher, student = BigramBackend.random(seed=1), BigramBackend.random(seed=2)
    heard, done = [], []
    expected = score_text(student, batches, teacher)
    found = score_text(Small(student, 2), batches, teacher, done.append, on_halved=heard.append)
    assert torch.equal(found.nats, expected.nats) and torch.equal(found.kl, expected.kl)
    assert torch.equal(found.sequence, expected.sequence)
    assert done == [5, 8] and len(heard) == 2
