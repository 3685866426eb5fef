"""What changes a result's bits besides the settings: resolved once, kept beside the partial work, reused.

A run that is killed and resumed must end in the same bytes, so the second process must not decide anew how
many threads share a sum or how many sequences share a matrix product.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from compress.errors import InputError
from compress.models.device import default_device
from compress.records import JsonValue, Record
from compress.train.allocator import freed_memory_kept
from compress.train.distributed import Team
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings

START = "start.json"
CPU_MICRO_TOKENS = 2_048
"""More tokens at once make a processor no faster: its caches are full."""
EAGER_TOKENS = 256
"""Up to here whole attention matrices are small, and on a processor in bf16 plain matrix products take a
third of the time of the fused kernel, whose backward pass is slow."""


class Numerics(Record):
    """One machine's answers."""

    device: str
    precision: Literal["bf16", "fp32"]
    num_threads: int
    micro_batch: int
    attention: Literal["eager", "sdpa"]
    checkpoint_activations: bool = False
    gave_way: tuple[str, ...] = ()
    """What was changed when memory ran out."""

    def facts(self) -> dict[str, JsonValue]:
        """Return what the record keeps, and whether the same bytes would come again on such a machine."""
        facts = self.model_dump(exclude={"gave_way"}) | {"bit_exact": not self.gave_way}
        if self.gave_way:
            facts["bit_exact_ended_by"] = f"memory ran out: {'; '.join(self.gave_way)}"
        return facts

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context a forward pass runs in."""
        return torch.autocast(
            torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


def resolve(
    folder: Path,
    settings: TrainingSettings,
    schedule: Schedule,
    on_gpu: Callable[[Numerics], Numerics],
    team: Team,
) -> Numerics:
    """Return the answers given at the first start of the work in `folder`, or give and write them now.

    `on_gpu` completes them where there is a GPU, by trying what fits; not in a team, whose processes hold parts.
    """
    path = folder / START
    if path.exists():
        return Numerics.model_validate_json(path.read_text(encoding="utf-8"))
    numerics = _decide(settings, schedule)
    if numerics.device != "cpu" and not team.is_launched:
        numerics = on_gpu(numerics)
    keep(folder, numerics)
    return numerics


def keep(folder: Path, numerics: Numerics) -> None:
    """Write the answers beside the partial work in `folder`, in the place of earlier ones."""
    path = folder / START
    temporary = path.with_suffix(".new")
    temporary.write_text(numerics.model_dump_json(), encoding="utf-8")
    temporary.replace(path)


@contextmanager
def applied(numerics: Numerics) -> Iterator[None]:
    """Compute as `numerics` says inside this block; on CUDA with deterministic algorithms."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(numerics.num_threads)
    if numerics.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with freed_memory_kept() if numerics.device == "cpu" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def has_fast_bf16(device: str) -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _decide(settings: TrainingSettings, schedule: Schedule) -> Numerics:
    device = default_device()
    if settings.precision == "bf16" and not has_fast_bf16(device):
        raise InputError("`precision: bf16`: this machine has no fast bf16. Allowed: auto, fp32")
    bf16 = settings.precision != "fp32" and has_fast_bf16(device)
    eager = device == "cpu" and bf16 and schedule.sequence_length <= EAGER_TOKENS
    micro_batch = settings.micro_batch or max(1, CPU_MICRO_TOKENS // schedule.sequence_length)
    return Numerics(
        device=device,
        precision="bf16" if bf16 else "fp32",
        num_threads=torch.get_num_threads(),
        micro_batch=min(micro_batch, schedule.batch_sequences),
        attention="eager" if eager else "sdpa",
        checkpoint_activations=settings.checkpoint_activations is True,
    )
