"""Where the original is read beside an export, with a processor that pretends to be a GPU."""

import pytest

from compress.backends import huggingface, opening
from compress.backends.huggingface import HuggingFaceBackend
from compress.measure import divergence
from compress.meters import memory
from compress.models.checkpoint import load_model


@pytest.mark.parametrize(("device", "fitted"), [("cpu", ["original"]), ("cuda", ["original", "student"])])
def test_the_original_stays_on_the_gpu_beside_what_a_processor_reads(
    device, fitted, original, student, text, context, monkeypatch
):
    asked = []

    def open(artifact, options):
        backend = HuggingFaceBackend(load_model(artifact.path))
        backend.on_cuda = (device if options.device == "auto" else options.device) == "cuda"
        return backend

    names = {original.key: "original", student.key: "student"}
    monkeypatch.setattr("compress.models.device.default_device", lambda: "cuda")
    monkeypatch.setattr(opening, "device_of", lambda artifact: device)
    monkeypatch.setattr(huggingface, "open", open)
    monkeypatch.setattr(
        memory, "fit_together", lambda models, on: asked.append(([names[m.key] for m in models], on)) or True
    )
    given = context(original=original, text=text)
    measured = {m.name: m for m in divergence.measure(student, divergence.Config(batch_size=4), given)}
    assert asked == [(fitted, "cuda")]
    said = "one of them on the GPU, the other on the processor" in measured["kl_divergence"].note
    assert said == (device == "cpu")
