"""Sums on GPUs in one order, so that what is computed again ends in the same bytes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The best first. All have gradients that are summed in one order where nothing else is allowed."""


Result = TypeVar("Result")


def in_one_order(device: str, work: Callable[[], Result]) -> Result:
    """Do work that has gradients in it and return what it returns, on GPUs with deterministic algorithms only.

    Where an operation has none, it is done again from its beginning with those there are.
    """
    if torch.device(device).type == "cpu":
        return work()
    try:
        with sdpa_kernel(ATTENTION_KERNELS, set_priority=True), deterministic(warn_only=False):
            return work()
    except RuntimeError as error:
        if not has_no_deterministic(error):
            raise
    with gradients_in_one_order():
        return work()


@contextmanager
def gradients_in_one_order() -> Iterator[None]:
    """Prefer deterministic algorithms, and never take cuDNN's attention, whose gradient may have none."""
    with deterministic(warn_only=True), sdpa_kernel(ATTENTION_KERNELS, set_priority=True):
        yield


@contextmanager
def deterministic(warn_only: bool) -> Iterator[None]:
    """Use deterministic algorithms on GPUs inside this block; without `warn_only` no others.

    Attention's backward pass is deterministic only where no others are allowed. Raises `RuntimeError`
    (`has_no_deterministic`) for an operation that has no such algorithm.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    memory.fill_uninitialized_memory = False  # filling takes time, and nothing reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fills


def has_no_deterministic(error: BaseException) -> bool:
    """Whether an operation was refused because it has no deterministic algorithm."""
    return "does not have a deterministic implementation" in str(error)
