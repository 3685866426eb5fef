"""The environment variables that processes compute under, here and on other machines.

They are read when torch is loaded or first used, so they are set before a process starts. What a user has set stays.
"""

import os
from collections.abc import Mapping

FIXED = {
    # A GPU's matrix products come out alike only if their workspace is fixed before the first.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # cuDNN's attention, first choice on recent cards, is passed over where its sums have one order and not elsewhere:
    # a forward and a backward pass that are allowed different things would take different kernels.
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
}
ALLOCATOR = "PYTORCH_ALLOC_CONF"
EARLIER_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""What the former was called: torch reads it where the former is not set."""


def for_processes(environment: Mapping[str, str], num_processes: int) -> dict[str, str]:
    """Return an environment for so many processes together: the processor's threads are shared between them."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    shared = {"OMP_NUM_THREADS": str(threads), **with_variables(environment)}
    # torchrun says much that is no news to a person, and so do the processes when one of them ends.
    return shared | {"TORCH_CPP_LOG_LEVEL": "ERROR"}


def with_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with what results and memory on GPUs need; what is set in it already stays."""
    # Blocks that grow: rows differ in length, and what lies between fixed blocks is lost.
    growing = {} if EARLIER_ALLOCATOR in environment else {ALLOCATOR: "expandable_segments:True"}
    return {**FIXED, **growing, **environment}
