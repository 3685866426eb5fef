"""What changes a result's bits besides the settings: resolved once, kept beside the partial work, reused.

A run that is killed and resumed must end in the same bytes, so the second process must not decide anew how
many threads share a sum or how many sequences share a matrix product.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from compress.errors import InputError
from compress.models.determinism import deterministic, gradients_in_one_order
from compress.models.device import default_device, has_fast_bf16
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
    attention: Literal["eager", "sdpa", "packed"]
    """``packed``: inside documents alone (`compress.train.attention`), whole rows as ``sdpa``."""
    checkpoint_activations: bool = False
    gave_way: tuple[str, ...] = ()
    """What was changed when memory ran out."""
    halvings: int = 0
    """How often memory ran out while evaluating: as often are evaluation's batches halved."""
    sums_vary: str = ""
    """Why sums on GPUs may be formed in another order each time; empty where they are not."""

    def facts(self) -> dict[str, JsonValue]:
        """Return what the record keeps, and whether the same bytes would come again on such a machine."""
        ended_by = [f"memory ran out: {'; '.join(self.gave_way)}"] if self.gave_way else []
        ended_by += [self.sums_vary] if self.sums_vary else []
        hidden = {"gave_way", "halvings", "sums_vary"}
        facts = self.model_dump(exclude=hidden) | {"bit_exact": not ended_by}
        if ended_by:
            facts["bit_exact_ended_by"] = "; ".join(ended_by)
        return facts

    @property
    def sums_in_one_order(self) -> bool:
        """Whether gradients are computed with deterministic algorithms only. A processor has no others."""
        return self.device != "cpu" and not self.sums_vary

    def evaluated(self, num_rows: int) -> int:
        """Return how many rows to evaluate at once, where otherwise it would be so many."""
        return max(1, num_rows >> self.halvings)

    def evaluating_less(self, *num_rows: int) -> "Numerics | None":
        """Return these with half as many rows evaluated at once; `None` where all of `num_rows` came down to one."""
        if all(self.evaluated(num) == 1 for num in num_rows):
            return None
        halvings = self.halvings + 1
        said = f"evaluation's batches became 1/{2**halvings} of their size"
        return self.model_copy(update={"halvings": halvings, "gave_way": (*self.gave_way, said)})

    def without_one_order(self, error: BaseException) -> "Numerics":
        """Return these after an operation was refused for having no deterministic algorithm."""
        operation = str(error).split(" does not have")[0]
        return self.model_copy(update={"sums_vary": f"on this GPU {operation} sums in any order"})

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context a forward pass runs in.

        Each weight is used once in a pass, so that copies of it kept until the end would serve nobody, and they would
        take half of what all weights take.
        """
        return torch.autocast(
            torch.device(self.device).type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=False,
        )

    def exact(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass and its backward pass: one for both.

        Which kernel computes attention follows from what is allowed, and activations are computed again within the
        backward pass: another kernel there would keep other tensors than the first time.
        """
        return deterministic(warn_only=False) if self.sums_in_one_order else nullcontext()


def resolve(
    folder: Path,
    settings: TrainingSettings,
    schedule: Schedule,
    on_gpu: Callable[[Numerics], Numerics],
    team: Team,
) -> Numerics:
    """Return the answers given at the first start of the work in `folder`, or give and write them now.

    `on_gpu` completes them where there is a GPU, by trying what fits. A team's processes try together what only they
    can (`compress.train.team_memory`), and keep it then.
    """
    # The leader alone looks: on a network's file system others may not see for a minute what it has written.
    numerics = _resolved(folder, settings, schedule, on_gpu, team) if team.leads else None
    written = team.agree(numerics.model_dump_json() if numerics else "")
    return Numerics.model_validate_json(written)


def _resolved(
    folder: Path,
    settings: TrainingSettings,
    schedule: Schedule,
    on_gpu: Callable[[Numerics], Numerics],
    team: Team,
) -> Numerics:
    path = folder / START
    if path.exists():
        return Numerics.model_validate_json(path.read_text(encoding="utf-8"))
    numerics = _decide(settings, schedule)
    if numerics.device != "cpu":
        if team.is_launched:
            # One process that fails in a backward pass would leave the others waiting.
            return numerics.model_copy(update={"sums_vary": "several GPUs are not held to one order of sums"})
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
    """Compute as `numerics` says inside this block; on CUDA with deterministic algorithms where there are any."""
    threads = torch.get_num_threads()
    torch.set_num_threads(numerics.num_threads)
    try:
        with _on_processor() if numerics.device == "cpu" else gradients_in_one_order():
            yield
    finally:
        torch.set_num_threads(threads)


def _on_processor() -> AbstractContextManager[object]:
    """Return the context that a process alone keeps freed memory in.

    A team gathers and drops every layer's weights. What outlives them comes to lie in the gaps, and a heap that is kept
    grows to several times what is in use.
    """
    return nullcontext() if Team.current().is_launched else freed_memory_kept()


def chosen_precision(setting: Literal["auto", "bf16", "fp32"], device: str) -> Literal["bf16", "fp32"]:
    """Return what matrices are multiplied in. Raises `InputError` for bf16 where it is slow."""
    fast = has_fast_bf16(device)
    if setting == "bf16" and not fast:
        raise InputError("`precision: bf16`: this machine has no fast bf16. Allowed: auto, fp32")
    return "bf16" if setting != "fp32" and fast else "fp32"


def _decide(settings: TrainingSettings, schedule: Schedule) -> Numerics:
    device = default_device()
    precision = chosen_precision(settings.precision, device)
    eager = device == "cpu" and precision == "bf16" and schedule.sequence_length <= EAGER_TOKENS
    micro_batch = settings.micro_batch or max(1, CPU_MICRO_TOKENS // schedule.sequence_length)
    return Numerics(
        device=device,
        precision=precision,
        num_threads=torch.get_num_threads(),
        micro_batch=min(micro_batch, schedule.batch_sequences),
        attention="eager" if eager else "packed",
        checkpoint_activations=settings.checkpoint_activations is True,
    )
