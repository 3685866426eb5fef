"""Batches that are halved where memory is too small for them."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from compress.errors import is_out_of_memory

T = TypeVar("T")


def halved(work: Callable[[int], T], size: int) -> tuple[T, int]:
    """Return what the work gives for so many at once, half of them, a quarter …, the first that fits; and how many.

    Work that fails must leave nothing behind. Raises its error where one alone does not fit, and every other error.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Out of the handler: the error held the failed work's tensors.
        torch.cuda.empty_cache()
        size //= 2


def in_parts(work: Callable[[int, int], T], num: int, on_halved: Callable[[str], None]) -> Iterator[T]:
    """Yield what the work gives for a batch of `num`, from a first to before a last, or for parts of it that fit.

    No part is larger than one before. `on_halved` hears of parts that memory is too small for. Raises as `halved` does.
    """
    start, most = 0, num
    while start < num:

        def part(size: int, start: int = start) -> T:
            return work(start, start + size)

        asked = min(most, num - start)
        done, size = halved(part, asked)
        if size < asked:
            on_halved(said(asked, size))
            most = size
        yield done
        start += size


def said(size: int, smaller: int) -> str:
    """Return what is to be said of a batch that was halved."""
    return f"memory was too small for {size} sequences at once: {smaller} were read (the last digits differ)"
