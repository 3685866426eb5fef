"""When a GPU waits for the processor: told from how long its kernels ran, here by a profiler that is pretended."""

import pytest

from compress.meters import launching as module
from compress.meters.launching import Launching, launching, said
from compress.meters.timing import Sample, Shape
from tests.meters.bigram import BigramBackend

SHAPE = Shape(batch_size=2, prompt_tokens=3, new_tokens=6)
SAMPLES = [Sample(first_token_ms=ms, total_ms=ms + 100.0, new_tokens=6) for ms in (30.0, 40.0, 90.0)]
"""20 ms a token, 40 to the first."""


class OnCuda(BigramBackend):
    on_cuda = True
    how = "CUDA graph"

    def prepare(self, batch_size, num_positions):
        assert (batch_size, num_positions) == (2, 9)
        return self.how


@pytest.fixture
def busy(monkeypatch):
    """Kernels of the given lengths, one for each profile; the work is done all the same."""

    def pretend(*lengths):
        given = iter(lengths)

        def busy_ms(work):
            work()
            return next(given)

        monkeypatch.setattr(module, "busy_ms", busy_ms)

    return pretend


def backend_on_cuda(how="CUDA graph"):
    backend = OnCuda(BigramBackend.random().table_VV)
    backend.how = how
    return backend


def test_on_a_processor_nothing_is_said_and_nothing_profiled():
    backend = BigramBackend.random()
    assert launching(backend, SHAPE, SAMPLES) == Launching("", "")
    assert backend.decoded == 0


@pytest.mark.parametrize(
    ("kernels", "words"), [(19.9, "launch-bound: the GPU worked 50% of the time"), (20.1, "")]
)
def test_a_gpu_that_works_less_than_half_of_the_time_waits(kernels, words):
    assert said(kernels, 40.0) == words


def test_tokens_by_a_graph_are_the_gpus(busy):
    busy(8.0)
    assert launching(backend_on_cuda(), SHAPE, SAMPLES) == Launching(
        "launch-bound: the GPU worked 20% of the time", "CUDA graph"
    )


def test_eager_tokens_are_looked_at(busy):
    busy(39.0, 4 * 5.0)
    backend = backend_on_cuda("eager: it says why")
    assert launching(backend, SHAPE, SAMPLES) == Launching(
        "", "eager: it says why; launch-bound: the GPU worked 25% of the time"
    )
    assert backend.decoded == module.TOKENS


def test_eager_tokens_that_keep_the_gpu_busy_are_no_less_true(busy):
    busy(39.0, 4 * 18.0)
    assert launching(backend_on_cuda("eager: it says why"), SHAPE, SAMPLES) == Launching(
        "", "eager: it says why"
    )


def test_without_a_profile_it_is_not_known(busy):
    busy(None, None)
    found = launching(backend_on_cuda("eager: it says why"), SHAPE, SAMPLES)
    assert "no profile of the GPU" in found.reading and "no profile of the GPU" in found.writing
