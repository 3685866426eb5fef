"""Everything a user can be told went wrong: one exception a kind, one exit code a class.

    CompressError
    ├── InputError (2)         the pipeline file or an argument is wrong
    │   └── HubUnavailable (2) the hub cannot be asked, or gives this to others only
    ├── StepFailed (3)         a step could not do its work
    │   └── StoreCorrupted (3) an artifact's bytes no longer match its manifest
    ├── GateFailed (4)         a quality gate failed; the report is written
    ├── DoesNotFit (5)         memory or disk is short, found before the work
    ├── Preempted (75)         stopped from outside; run again to resume
    └── Interrupted (130)      stopped by the user; run again to resume

A message says what is wrong, where, what is allowed and, when it can, what was probably meant.
"""

import difflib
import errno
import re
from collections.abc import Iterable

TORCHS = "OutOfMemoryError"
"""What torch calls the error of its allocators: known by name, as this file knows no torch."""
SAID_WHEN_FULL = re.compile(
    r"out of memory"  # CUDA, its driver, cuBLAS, NCCL, Triton, bitsandbytes
    r"|OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|std::bad_alloc|Cannot allocate memory|Failed to allocate memory",  # C++, the kernel, ONNX Runtime
    re.IGNORECASE,
)
"""What libraries say where memory is too small, in errors of no kind of their own."""


class CompressError(Exception):
    """The base of every error this package raises on purpose."""

    exit_code = 1
    run: str | None = None
    """The id of the run that it ended; ``None`` before there was one, when nothing is changed yet."""


class InputError(CompressError):
    """The pipeline file, a checkpoint or an argument is wrong. Nothing has run."""

    exit_code = 2


class HubUnavailable(InputError):
    """What a pipeline names may be on the hub, but cannot be looked up: no network, or no right to it."""


class StepFailed(CompressError):
    """A step could not do its work; everything before it is kept."""

    exit_code = 3


class StoreCorrupted(StepFailed):
    """An artifact's files differ from the digests in its manifest."""


class GateFailed(CompressError):
    """A student lost more quality than the pipeline allows."""

    exit_code = 4


class DoesNotFit(CompressError):
    """The work needs more memory or disk than there is."""

    exit_code = 5


class Preempted(CompressError):
    """The run was asked to stop (SIGTERM); the same command resumes it."""

    exit_code = 75


class Interrupted(CompressError):
    """The user stopped the run (Ctrl-C); the same command resumes it."""

    exit_code = 130


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or the full stop that ends the sentence."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else "."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was too small, on a GPU or a processor, in whatever words of the library that asked for it.

    What only speaks of memory, such as a wrong value or our own report of an earlier failure, is not such an error.
    """
    if isinstance(error, MemoryError) or any(cls.__name__ == TORCHS for cls in type(error).__mro__):
        return True
    if isinstance(error, CompressError | ValueError | TypeError | LookupError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if SAID_WHEN_FULL.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)
