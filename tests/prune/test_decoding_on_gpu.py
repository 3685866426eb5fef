"""Timing shapes where a GPU is pretended: by recorded steps, or not at all."""

import pytest

from compress.backends.fixed_decoding import CannotRepeat
from compress.errors import StepFailed
from compress.models.layout import layout
from compress.prune import decoding
from tests.backends.recorded import Recorded, record
from tests.fakes import FakeContext
from tests.prune.checkpoints import tiny_parent


@pytest.fixture
def parent(tmp_path):
    return tiny_parent(tmp_path / "parent", "gemma3_text", sliding_window=8)


def refuse(step):
    raise CannotRepeat("a reason")


def time(parent, folder):
    return decoding.time_models(parent.spec, [layout(parent.spec.config)], 16, FakeContext(folder))


def test_every_timed_token_is_a_recorded_step(parent, tmp_path, monkeypatch):
    made: list[Recorded] = []
    monkeypatch.setattr(decoding, "_recorder", lambda: lambda step: made.append(record(step)) or made[-1])
    (ms,) = time(parent, tmp_path / "x")
    assert ms > 0
    assert [each.replays for each in made] == [1 + decoding.ROUNDS * decoding.TOKENS]


def test_a_gpu_that_waits_for_the_processor_is_no_target(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_recorder", lambda: refuse)
    monkeypatch.setattr(decoding, "busy_ms", lambda work: work() or 1e-9)
    with pytest.raises(
        StepFailed, match=r"target latency: .*launch-bound.*no CUDA graph: a reason.*params, memory"
    ):
        time(parent, tmp_path / "x")


def test_a_gpu_that_is_busy_without_a_graph_is_timed(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_recorder", lambda: refuse)
    monkeypatch.setattr(decoding, "busy_ms", lambda work: work() or 1e9)
    (ms,) = time(parent, tmp_path / "x")
    assert ms > 0
