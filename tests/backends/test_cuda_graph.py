"""The order of a recording, on a CUDA that is pretended; and that no step of any family leaves its device."""

from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from compress.backends import cuda_graph
from compress.backends.cuda_graph import CudaRecorder, check_graph_safe
from compress.backends.fixed_decoding import ALIGNED, CannotRepeat, FixedDecoder
from tests.models.tiny import DECODERS, tiny_model, token_ids


class Stream:
    def __init__(self, device=None):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


@pytest.fixture
def cuda(monkeypatch):
    """What the recorder uses of torch.cuda; the current stream is in ``now``."""
    pretended = type("Cuda", (), {"Stream": Stream, "CUDAGraph": object, "now": Stream(), "fails": None})()

    @contextmanager
    def stream(new):
        before, pretended.now = pretended.now, new
        yield
        pretended.now = before

    @contextmanager
    def graph(graph, pool, stream):
        pretended.now = stream
        yield
        if pretended.fails:
            raise pretended.fails  # torch then leaves its stream as the current one
        pretended.now = stream

    @contextmanager
    def device(device):
        yield

    pretended.stream, pretended.graph, pretended.device = stream, graph, device
    pretended.current_stream = lambda device: pretended.now
    pretended.set_stream = lambda new: setattr(pretended, "now", new)
    pretended.graph_pool_handle = lambda: "pool"
    monkeypatch.setattr(cuda_graph.torch, "cuda", pretended)
    return pretended


def test_a_step_is_looked_at_and_warmed_up_before_it_is_recorded(cuda):
    before, ran = cuda.now, []
    recorder = CudaRecorder(torch.device("cpu"))
    recorder(lambda: ran.append(cuda.now))
    stream = ran[-1]
    assert ran == [before, *[stream] * (cuda_graph.WARM_UP + 1)] and stream is not before
    assert cuda.now is before
    assert stream.waited == [before] and before.waited == [stream]


def test_a_step_that_waits_is_never_recorded(cuda):
    ran = []
    with pytest.raises(CannotRepeat, match="_local_scalar_dense"):
        CudaRecorder(torch.device("cpu"))(lambda: ran.append(torch.ones(2).sum().item()))
    assert not ran


def test_a_recording_that_fails_says_why_and_leaves_the_stream_as_it_was(cuda):
    before = cuda.now
    cuda.fails = RuntimeError("operation not permitted when stream is capturing\nmore lines")
    with pytest.raises(
        CannotRepeat, match=r"recording failed: operation not permitted when stream is capturing$"
    ):
        CudaRecorder(torch.device("cpu"))(lambda: None)
    assert cuda.now is before


def test_steps_before_the_first_prompt_stay_within_the_smallest_buffers():
    assert cuda_graph.WARM_UP + 2 <= ALIGNED


@pytest.mark.parametrize("family", DECODERS)
def test_no_step_moves_data_between_devices(family):
    """In bf16 on the meta device, which holds no data: whatever a step makes on the processor would be moved to it."""
    model = tiny_model(family)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=token_ids(2, 3), past_key_values=cache)
    for layer in cache.layers:
        layer.keys, layer.values = (held.to("meta", torch.bfloat16) for held in (layer.keys, layer.values))
    done = []

    def record(step):
        check_graph_safe(step)
        done.append(step)

    FixedDecoder(model.to("meta", torch.bfloat16), cache, 16, record)
    assert done
