"""How much memory serving the model takes: a process that opens it and generates the profile's largest shape
(an encoder: that reads its prompts).

The engine runs every measurement in a process of its own, so the process's peak is the model's. On CUDA the
allocator's figures are taken instead, which hold the model and nothing else.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.machine import planned_machine
from compress.models.effort import as_stored, opening, writing
from compress.models.task import writes
from compress.plugins import Context, Measured, StepConfig
from compress.records import Artifact, Measurement, Work

if TYPE_CHECKING:
    from compress.meters.timing import Shape

VERSION = 2

NOTES = {"peak_memory_growth": "over an empty process with the same imports; mapped weights counted"}

START_SECONDS = 1.0
"""To import the runtime."""


class Config(StepConfig):
    """The profile; its largest shape is generated."""

    batch_sizes: tuple[int, ...] = (1,)
    """Sequences generated together."""
    prompt_tokens: tuple[int, ...] = (128,)
    """Tokens read before the first is written."""
    new_tokens: int = Field(default=32, ge=2)
    """Tokens written."""


def estimate(measured: Measured, config: Config) -> Work:
    """Return about what opening and the largest shape take."""
    new_tokens = config.new_tokens if writes(measured.spec.config) else 1
    answer = writing(measured.spec, max(config.batch_sizes), max(config.prompt_tokens), new_tokens)
    if measured.kind == "onnx" or planned_machine().card is None:
        answer = as_stored(answer, measured.spec)
    work = opening(measured.spec).plus(answer).plus(Work(serial_seconds=START_SECONDS))
    return work.model_copy(update={"on_processor": measured.kind == "onnx"})


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `load_memory` after opening and `peak_memory` over everything, in bytes.

    On a CPU also `peak_anonymous_memory`: what remains when mapped files (the checkpoint) are left to the
    kernel; and `peak_memory_growth`: what the model and its runtime take beside an empty process with the same imports,
    weights that are mapped counted.
    """
    from compress.meters.timing import Shape

    return _measure_shape(
        artifact, Shape(max(config.batch_sizes), max(config.prompt_tokens), config.new_tokens), context
    )


def _measure_shape(artifact: Artifact, shape: "Shape", context: Context) -> list[Measurement]:
    import torch

    from compress.backends.opening import open_artifact
    from compress.meters.memory import (
        AnonymousPeak,
        EmptyProcess,
        mapped_bytes,
        peak_resident_bytes,
        resident_bytes,
    )
    from compress.meters.timing import time_answer

    empty = None if torch.cuda.is_available() else EmptyProcess()  # a CUDA context cannot be forked
    with AnonymousPeak() as anonymous:
        backend = open_artifact(artifact)
        context.progress(1, 2, "stages")
        loaded, on_cuda = resident_bytes(), torch.cuda.is_available() and torch.cuda.memory_allocated()
        new_tokens = time_answer(backend, shape).new_tokens
        context.progress(2, 2, "stages")
    batch = f"batch {shape.batch_size}, {shape.prompt_tokens} + {new_tokens} tokens"
    if on_cuda:
        note = f"PyTorch's CUDA allocator; {batch}"
        figures = {"load_memory": on_cuda, "peak_memory": torch.cuda.max_memory_allocated()}
    else:
        note = f"the whole process, imported libraries and mapped files included; {batch}"
        figures = {"load_memory": loaded, "peak_memory": peak_resident_bytes()}
        figures["peak_anonymous_memory"] = anonymous.bytes
        mapped, imported = mapped_bytes(artifact.path), empty.anonymous_bytes() if empty else None
        if imported is not None:
            figures["peak_memory_growth"] = max(0, anonymous.bytes - imported) + mapped
    backend.close()
    return [
        Measurement(
            name=name, value=value, unit="bytes", higher_is_better=False, n=1, note=NOTES.get(name, note)
        )
        for name, value in figures.items()
    ]
