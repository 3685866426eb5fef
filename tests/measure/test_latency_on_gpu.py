"""What a measured speed says of itself on a GPU, with a processor that pretends to be one."""

import pytest
import torch

from compress import plugins
from compress.backends import huggingface, opening
from compress.backends.huggingface import HuggingFaceBackend
from compress.errors import InputError
from compress.measure import cost, latency
from compress.meters import launching, memory, timing
from compress.models.checkpoint import load_model
from compress.records import LAUNCH_BOUND, Artifact
from tests.backends.recorded import record
from tests.fakes import FakeContext
from tests.models.tiny import write_tiny

CONFIG = latency.Config(batch_sizes=(2,), prompt_tokens=(4,), new_tokens=5, repeats=3, num_threads=1)


@pytest.fixture(autouse=True)
def own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which kernels run for so long; what opens a model remembers the device it was asked for."""
    opened = []

    def pretend(*kernel_ms, recorder=record):
        given = iter(kernel_ms)

        def open(artifact, options):
            opened.append((artifact.key, options.device))
            backend = HuggingFaceBackend(load_model(artifact.path))
            if options.device != "cpu":
                backend.on_cuda, backend._record = True, recorder
            return backend

        def busy_ms(work):
            work()
            return next(given)

        monkeypatch.setattr(opening, "default_device", lambda: "cuda")
        monkeypatch.setattr("compress.models.device.default_device", lambda: "cuda")
        monkeypatch.setattr(memory, "fit_together", lambda artifacts, device: True)
        monkeypatch.setattr(huggingface, "open", open)
        monkeypatch.setattr(launching, "busy_ms", busy_ms)
        return opened

    return pretend


def by_name(measured):
    return {m.name: m for m in measured}


def test_tokens_by_a_graph_say_so(original, student, context, gpu):
    opened = gpu(1e6, 1e6)
    given = context(original=original)
    measured = by_name(latency.measure(student, CONFIG, given))
    assert opened == [(student.key, "cuda"), (original.key, "cuda")]
    for name in ("time_per_output_token", "tokens_per_second", "time_per_output_token_ratio"):
        assert measured[name].note.endswith("; CUDA graph")
    assert "CUDA graph" not in measured["time_to_first_token"].note
    assert not given.warnings


def test_a_prompt_that_is_launch_bound_warns_and_its_price_says_so(original, context, gpu):
    gpu(1e-9)
    given = context()
    measured = by_name(latency.measure(original, CONFIG, given))
    assert LAUNCH_BOUND in measured["prefill_tokens_per_second"].note
    assert LAUNCH_BOUND not in measured["tokens_per_second"].note
    (warning,) = given.warnings
    assert "batch_size 2, prompt_tokens 4" in warning and LAUNCH_BOUND in warning
    prices = by_name(cost.costs(list(measured.values()), usd_per_hour=2.0))
    assert LAUNCH_BOUND in prices["usd_per_million_input_tokens"].note
    assert LAUNCH_BOUND not in prices["usd_per_million_output_tokens"].note


def test_eager_tokens_say_why(original, context, gpu):
    def refuse(step):
        raise huggingface.CannotRepeat("a reason")

    gpu(1e6, 1e-9, recorder=refuse)
    measured = by_name(latency.measure(original, CONFIG, context()))
    assert measured["tokens_per_second"].note.endswith(
        "; eager: a reason; launch-bound: the GPU worked 0% of the time"
    )


def test_a_recording_is_made_before_the_first_timed_round(original, context, gpu, monkeypatch):
    recorded, timed = [], []
    gpu(1e6, recorder=lambda step: recorded.append(len(timed)) or record(step))
    answer = timing.time_answer
    monkeypatch.setattr(timing, "time_answer", lambda *args: timed.append(1) or answer(*args))
    latency.measure(original, CONFIG.model_copy(update={"warm_up": 0}), context())
    assert recorded == [0] and len(timed) == 6  # before each timed answer stands one that is not


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("original"), "qwen3", num_hidden_layers=2)
    source = Artifact(key="source", kind="hf", path=folder)
    step, out = plugins.step("export.onnx"), tmp_path_factory.mktemp("exported")
    step.run(source, step.Config(), FakeContext(out))
    return source, Artifact(key="exported", kind="onnx", path=out)


def test_beside_an_export_the_original_runs_on_the_processor_too(exported, context, gpu):
    source, export = exported
    opened = gpu()
    measured = by_name(latency.measure(export, CONFIG, context(original=source)))
    assert opened == [("source", "cpu")]
    assert all(
        "; all on the processor" in measured[n].note
        for n in ("tokens_per_second", "time_per_output_token_ratio")
    )


def test_an_export_is_not_opened_on_a_gpu(exported):
    with pytest.raises(InputError, match="Allowed for device: auto, cpu"):
        opening.open_artifact(exported[1], opening.OpenOptions(device="cuda"))


def test_on_a_processor_notes_are_as_they_were(original, student, context):
    measured = by_name(latency.measure(student, CONFIG, context(original=original)))
    assert measured["tokens_per_second"].note.endswith("5 new tokens, 1 threads")
    assert (
        measured["time_per_output_token_ratio"].note
        == "of the medians; the interval is of rounds compared one by one"
    )
