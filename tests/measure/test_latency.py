import json

import pytest
import torch

from compress.errors import InputError
from compress.measure import latency
from compress.meters import memory

CONFIG = latency.Config(batch_sizes=(1, 2), prompt_tokens=(4, 8), new_tokens=3, repeats=2, num_threads=1)


@pytest.fixture(autouse=True)
def own_threads():
    """Opening a model for timing sets the whole process's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_shape_is_timed_beside_the_original(original, student, context):
    given = context(original=original)
    measured = latency.measure(student, CONFIG, given)
    assert len(measured) == 4 * 4
    assert {(m.labels["batch_size"], m.labels["prompt_tokens"]) for m in measured} == {
        (1, 4),
        (1, 8),
        (2, 4),
        (2, 8),
    }
    assert all(m.value > 0 and m.beside["original"] > 0 and m.n == 2 for m in measured)
    assert {m.name: (m.unit, m.higher_is_better) for m in measured} == {
        "time_to_first_token": ("ms", False),
        "time_per_output_token": ("ms", False),
        "tokens_per_second": ("tokens/s", True),
        "prefill_tokens_per_second": ("tokens/s", True),
    }
    assert given.reports[-1][:2] == (2, 2)


def test_figures_follow_from_the_samples_that_are_kept(original, context):
    given = context()
    measured = latency.measure(original, CONFIG.model_copy(update={"repeats": 1}), given)
    raw = json.loads((given.folder / latency.SAMPLES).read_text())
    (sample,) = [s for s in raw if (s["batch_size"], s["prompt_tokens"]) == (2, 8)]
    by_name = {m.name: m.value for m in measured if m.labels == {"batch_size": 2, "prompt_tokens": 8}}
    (first,), (total,) = sample["first_token_ms"], sample["total_ms"]
    assert by_name["time_to_first_token"] == pytest.approx(first)
    assert by_name["time_per_output_token"] == pytest.approx((total - first) / 2)
    assert by_name["tokens_per_second"] == pytest.approx(2 * 1000 * 2 / (total - first))
    assert by_name["prefill_tokens_per_second"] == pytest.approx(2 * 8 * 1000 / first)


def test_the_ratio_to_the_original_has_the_interval_of_its_rounds(original, student, context):
    given = context(original=original)
    measured = latency.measure(student, CONFIG.model_copy(update={"repeats": 3}), given)
    ratios = [m for m in measured if m.name == "time_per_output_token_ratio"]
    times = [m for m in measured if m.name == "time_per_output_token"]
    assert {str(m.labels): m.value for m in ratios} == pytest.approx(
        {str(m.labels): m.value / m.beside["original"] for m in times}
    )
    assert all(m.unit == "ratio" and m.n == 3 and 0 < m.low <= m.value <= m.high for m in ratios)


def test_the_original_is_timed_alone(original, context):
    measured = latency.measure(original, CONFIG, context(original=original))
    assert all(not m.beside for m in measured)


def test_models_that_do_not_fit_together_are_opened_for_every_turn(original, student, context, monkeypatch):
    monkeypatch.setattr(memory, "fit_together", lambda artifacts, device: False)
    measured = latency.measure(student, CONFIG, context(original=original))
    assert all(m.beside["original"] > 0 and m.n == 2 for m in measured)


def test_a_profile_longer_than_the_model_reads_is_refused(original, context):
    with pytest.raises(InputError, match="at most 96"):
        latency.measure(original, latency.Config(prompt_tokens=(90,), new_tokens=10), context())
