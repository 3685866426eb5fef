"""Whether a GPU waits for the processor: how much of a measured time its kernels ran.

Small models and small batches leave a GPU idle while Python launches the next kernel. What is measured then is the
processor, whatever the model; a smaller model is no faster, and no price follows from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it is documented
from torch.profiler import ProfilerActivity, profile

from compress.backends.interface import Backend, Encoder
from compress.meters.timing import Sample, Shape
from compress.records import LAUNCH_BOUND

BUSY = 0.5
"""A GPU that works for less than this share of the time waits for the processor."""

TOKENS = 4
"""Tokens decoded to see how long kernels run for one."""


@dataclass(frozen=True)
class Launching:
    """How a model's work reached its device at one shape, as it stands in notes; empty on a processor."""

    reading: str = ""
    writing: str = ""


def launching(backend: Backend, shape: Shape, samples: list[Sample]) -> Launching:
    """Return how a prepared model's work was launched in these samples: by a graph, or so slowly that a GPU waited."""
    if not backend.on_cuda:
        return Launching()
    reading_ms = median(sample.first_token_ms for sample in samples)
    ids_BT = shape.prompts(backend.vocabulary)
    mask_BT = torch.ones_like(ids_BT)
    if isinstance(backend, Encoder):
        return Launching(said(busy_ms(lambda: backend.encode(ids_BT, mask_BT)), reading_ms))
    how = backend.prepare(shape.batch_size, shape.prompt_tokens + shape.new_tokens)
    tokens = backend.greedy(ids_BT, mask_BT, shape.new_tokens)
    reading = said(busy_ms(lambda: next(tokens)), reading_ms)
    if not how.startswith("eager"):
        return Launching(reading, how)
    num = min(TOKENS, shape.new_tokens - 1)
    busy = busy_ms(lambda: [next(tokens) for _ in range(num)])
    waits = said(None if busy is None else busy / num, median(sample.per_token_ms for sample in samples))
    return Launching(reading, "; ".join(part for part in (how, waits) if part))


def said(busy: float | None, wall: float) -> str:
    """Return what is to be said of a GPU that worked for so many of the milliseconds; nothing where it had no rest."""
    if busy is None:
        return "no profile of the GPU: it may have waited for the processor"
    share = busy / wall
    return f"{LAUNCH_BOUND}: the GPU worked {share:.0%} of the time" if share < BUSY else ""


def busy_ms(work: Callable[[], object]) -> float | None:
    """Return for how long the GPU's kernels and copies ran during the work; ``None`` where the profiler saw none."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    spans = [event.time_range for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sum(span.elapsed_us() for span in spans) / 1e3 if spans else None
