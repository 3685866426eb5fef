"""How long generation takes: time to first token, and time for each token after it.

Machines drift (clocks, neighbours), so models are timed in alternation, A B A B, and compared as ratios; raw
samples are kept. Output length is fixed and end-of-sequence ignored, or a model that stops early would look
fast.

Runtimes keep their threads spinning for a while after an answer, for the next one to begin at once: ONNX Runtime for
tens of milliseconds, which took the processors from whoever came next (2.2 times as long for a first token of PyTorch's
on two cores). Forbidding it would slow the runtime itself down (1.5 to 2 times), so every turn begins when the one
before has come to rest, and with an answer that is not timed: each model as if it were alone.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.backends.interface import Backend, Encoder

Lend = Callable[[], AbstractContextManager[Backend]]
"""Gives out a warm model for one turn: one that stays open, or one opened anew where two do not fit."""


@dataclass(frozen=True)
class Shape:
    """What is generated: `new_tokens` after prompts of `prompt_tokens`, in a batch."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, vocabulary: int) -> Tensor:
        """Return random prompts ``[B, T]``, always the same: speed hardly depends on what they say."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (self.batch_size, self.prompt_tokens), generator=generator)


@dataclass(frozen=True)
class Sample:
    """One timed generation, or an encoder's pass: that has no new tokens, and ends with its first figure."""

    first_token_ms: float
    total_ms: float
    new_tokens: int

    @property
    def per_token_ms(self) -> float:
        """Time for each token after the first."""
        return (self.total_ms - self.first_token_ms) / (self.new_tokens - 1)


def time_answer(backend: Backend, shape: Shape) -> Sample:
    """Return the times of one greedy generation, or of an encoder's one pass over the prompts, without its head.

    Fetching each token (and one state) waits for all work before it.
    """
    ids_BT = shape.prompts(backend.vocabulary)
    mask_BS = torch.ones_like(ids_BT)
    started = time.perf_counter()
    if isinstance(backend, Encoder):
        backend.encode(ids_BT, mask_BS)[:, -1, 0].cpu()
        return Sample(passed := (time.perf_counter() - started) * 1e3, passed, new_tokens=0)
    tokens = backend.greedy(ids_BT, mask_BS, shape.new_tokens)
    next(tokens)
    first_token = time.perf_counter()
    for _ in tokens:
        pass
    ended = time.perf_counter()
    return Sample((first_token - started) * 1e3, (ended - started) * 1e3, shape.new_tokens)


LONGEST_REST = 2.0
"""Seconds after which a process that still computes is not waited for: something in it never rests."""
_WATCHED = 0.01
_AT_REST = 0.1
"""Seconds of a processor that a process at rest takes in a second."""


def rest() -> bool:
    """Wait until nothing in this process computes, whatever runtime's thread it is; return whether that came.

    Other processes do not count: what they take, they take from every model alike.
    """
    end = time.perf_counter() + LONGEST_REST
    while time.perf_counter() < end:
        started, computed = time.perf_counter(), time.process_time()
        time.sleep(_WATCHED)
        if time.process_time() - computed < _AT_REST * (time.perf_counter() - started):
            return True
    return False


def alternate(
    lenders: Sequence[Lend],
    shapes: Sequence[Shape],
    repeats: int,
    on_round: Callable[[int], None] = lambda done: None,
    before_turn: Callable[[], object] = rest,
) -> list[dict[Shape, list[Sample]]]:
    """Return every sample of every model: in each of `repeats` rounds all models take their turn.

    Before each turn `before_turn` is called; it begins with a short answer that is not kept, for threads and caches to
    be as they are when a model runs alone.
    """
    samples: list[dict[Shape, list[Sample]]] = [{shape: [] for shape in shapes} for _ in lenders]
    for done in range(1, repeats + 1):
        for lend, own in zip(lenders, samples, strict=True):
            with lend() as backend:
                before_turn()
                time_answer(backend, replace(shapes[0], new_tokens=2))
                for shape in shapes:
                    own[shape].append(time_answer(backend, shape))
        on_round(done)
    return samples


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the interpolated percentile."""
    return float(np.percentile(values, percent))


@contextmanager
def machine_lock(path: Path | None = None) -> Iterator[None]:
    """Wait for every other timing on this machine, whoever runs it, and keep the next one waiting."""
    path = path or Path(tempfile.gettempdir()) / "compress-timing.lock"
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the lock file, read-only: another user's file in a sticky folder may be locked, not created."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o644)
