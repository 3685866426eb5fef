import threading
import time
from contextlib import contextmanager

import pytest

from compress.meters.timing import Sample, Shape, alternate, machine_lock, percentile, time_answer
from tests.meters.bigram import BigramBackend


def test_time_for_each_token_leaves_the_first_one_out():
    assert Sample(first_token_ms=100.0, total_ms=190.0, new_tokens=10).per_token_ms == 10.0


def test_output_has_a_fixed_length():
    backend = BigramBackend.random()
    sample = time_answer(backend, Shape(batch_size=2, prompt_tokens=3, new_tokens=6))
    assert backend.decoded == 5
    assert 0 < sample.first_token_ms < sample.total_ms


def test_prompts_are_always_the_same():
    shape = Shape(2, 5, 4)
    assert shape.prompts(100).tolist() == shape.prompts(100).tolist()
    assert shape.prompts(100).shape == (2, 5)


def test_models_take_turns_and_every_sample_is_kept():
    turns = []

    @contextmanager
    def lend(name):
        turns.append(name)
        yield BigramBackend.random()

    shapes = [Shape(1, 2, 2), Shape(2, 2, 2)]
    samples = alternate([lambda: lend("A"), lambda: lend("B")], shapes, repeats=3)
    assert turns == ["A", "B"] * 3
    assert [[len(taken[shape]) for shape in shapes] for taken in samples] == [[3, 3], [3, 3]]


def test_percentiles_are_interpolated():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([5.0], 90) == 5.0


def test_only_one_timing_runs_on_a_machine(tmp_path):
    inside, overlapped = [], []

    def timing():
        with machine_lock(tmp_path / "lock"):
            overlapped.append(bool(inside))
            inside.append(1)
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=timing) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlapped == [False] * 3


def test_the_lock_is_released_when_a_timing_fails(tmp_path):
    with pytest.raises(ValueError), machine_lock(tmp_path / "lock"):
        raise ValueError
    with machine_lock(tmp_path / "lock"):
        pass
