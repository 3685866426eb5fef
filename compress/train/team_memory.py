"""How a team fits into its GPUs: how its models are divided, and how much each process computes at once.

A process that runs out of memory amid a pass leaves the others waiting for what it was to send. So all take part in
every trial, none is made of a size that smaller ones do not promise to fit, and what they saw is compared: all go on
with the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import StepFailed, is_out_of_memory
from compress.quantities import format_memory
from compress.records import MemoryItem
from compress.train.distributed import Team, shard, summed_as
from compress.train.layers import models_of
from compress.train.memory import FEW_TOKENS, MOST_TOKENS, SHARE, recompute_activations
from compress.train.memory_account import MOMENT_BYTES, Conditions, total
from compress.train.numerics import Numerics
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.sharding import Sharding, candidates, roomiest

TRIED_BATCHES = 2
"""The second beside the gradients of the first, as in a long batch."""

Account = Callable[[Conditions], Sequence[MemoryItem]]
"""Tells what each device holds at the peak of a step of the models that are trained."""


class DeviceMemory(Protocol):
    """The memory of the device a process trains on."""

    def available(self) -> float:
        """Return how many bytes this process may take."""

    def taken_by(self, work: Callable[[], None]) -> tuple[float, float]:
        """Do the work; return how many bytes were taken before it, and at most during it."""


class GpuMemory:
    """That of the current GPU."""

    def available(self) -> float:
        return SHARE * float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())

    def taken_by(self, work: Callable[[], None]) -> tuple[float, float]:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            with torch.random.fork_rng([torch.cuda.current_device()]):
                work()
            return before, torch.cuda.max_memory_allocated()
        finally:
            torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class TeamTraining:
    """What a team is to train, and on how much memory."""

    objective: nn.Module
    student: PreTrainedModel
    read: Callable[[int], Batch]
    """Returns as many rows as training reads them."""
    settings: TrainingSettings
    schedule: Schedule
    memory: DeviceMemory
    account: Account

    def divide(self, numerics: Numerics, is_new: bool) -> tuple[Numerics, Sharding]:
        """Divide the models among the processes; return what all compute by, and how they are divided.

        `is_new`: nothing was decided by an earlier start. On a processor nothing is chosen: all share its memory.
        Raises `StepFailed` where memory is too small.
        """
        team = Team.current()
        if numerics.device == "cpu":
            sharding = Sharding(gathers_bf16=numerics.precision == "bf16")
            shard(self.objective, numerics.device, sharding)
            return numerics, sharding
        available = team.least(self.memory.available())
        sharding = self._sharding(numerics, available)
        if is_new and self.settings.checkpoint_activations == "auto":
            recompute = not self.keeps_activations(numerics, sharding, available)
            numerics = numerics.model_copy(update={"checkpoint_activations": recompute})
        shard(self.objective, numerics.device, sharding)
        return (self.tried(numerics, sharding) if is_new else numerics), sharding

    def keeps_activations(self, numerics: Numerics, sharding: Sharding, available: float) -> bool:
        """Whether activations are kept rather than recomputed, before anything is tried: what may not fit is not."""
        return not self._can_recompute or self._needs(numerics, sharding, recompute=False) <= available

    def tried(self, numerics: Numerics, sharding: Sharding) -> Numerics:
        """Return the numerics with a micro-batch that fits in every process, found by trying from below.

        One that was asked for is tried alone. Raises `StepFailed` where none fits.
        """
        try:
            return self._tried(numerics, sharding)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StepFailed(
                _too_small(self.settings.micro_batch or 1, str(error).splitlines()[0])
            ) from error

    def _tried(self, numerics: Numerics, sharding: Sharding) -> Numerics:
        recompute_activations(self.student.train(), numerics.checkpoint_activations)
        trial = _Trial(self, numerics, sharding)
        asked = self.settings.micro_batch
        if asked is None:
            size = largest_promised(trial, self._most)
        else:  # nothing is kept free of what was asked for
            size = asked if trial(min(asked, self._most_rows))[0] <= 1 / SHARE else None
        if size is not None:
            return numerics.model_copy(update={"micro_batch": min(size, self._most_rows)})
        is_free = self.settings.checkpoint_activations == "auto" and self._can_recompute
        if is_free and not numerics.checkpoint_activations:
            recomputed = numerics.model_copy(update={"checkpoint_activations": True})
            return self._tried(recomputed, sharding)
        raise StepFailed(_too_small(asked or 1, f"{format_memory(trial.most)} is needed on each card"))

    def _sharding(self, numerics: Numerics, available: float) -> Sharding:
        others = [model for model in models_of(self.objective) if model is not self.student]
        ways = candidates(numerics.precision == "bf16", Team.current().num_machines, bool(others))
        recompute = self._can_recompute and self.settings.checkpoint_activations is not False
        return roomiest(ways, lambda way: self._needs(numerics, way, recompute) <= available)

    def _needs(self, numerics: Numerics, sharding: Sharding, recompute: bool) -> int:
        """Return what each card holds by the account that was planned with, for rows that are worth a pass."""
        length = self.schedule.sequence_length
        rows = self.settings.micro_batch or max(1, FEW_TOKENS // length)
        conditions = Conditions(
            sequence_length=length,
            micro_batch=min(rows, self._most_rows),
            recompute=recompute,
            in_bf16=numerics.precision == "bf16",
            on_processor=numerics.device == "cpu",
            devices=Team.current().size,
            sharding=sharding,
        )
        return total(self.account(conditions))

    @property
    def _can_recompute(self) -> bool:
        return bool(self.student.supports_gradient_checkpointing)

    @property
    def _most_rows(self) -> int:
        """How many rows of a batch a process reads at most."""
        return max(1, -(-self.schedule.batch_sequences // Team.current().size))

    @property
    def _most(self) -> int:
        return min(self._most_rows, max(1, MOST_TOKENS // self.schedule.sequence_length))


def largest_promised(trial: Callable[[int], tuple[float, float]], most: int) -> int | None:
    """Return the largest of 1, 2, 4, … and `most` that fits; `None` where not even 1 does.

    `trial`: which share of the memory a size takes, and twice that size would at most. A size is tried only when the
    one before it promises that it fits.
    """
    size, (taken, promised) = 1, trial(1)
    if taken > 1:
        return None
    while size < most and promised <= 1:
        larger = min(2 * size, most)
        taken, promised = trial(larger)
        if taken > 1:
            break
        size = larger
    return size


class _Trial:
    """Passes as in training with so many rows, by all processes together; their gradients are thrown away."""

    def __init__(self, training: TeamTraining, numerics: Numerics, sharding: Sharding) -> None:
        self._training, self._numerics, self._sharding = training, numerics, sharding
        # Asked now: what the processes' communication takes is gone by now.
        self._available = Team.current().least(training.memory.available())
        trained = (p for p in training.student.parameters() if p.requires_grad)
        moments = MOMENT_BYTES[training.settings.optimizer]
        self._later = moments * sum(_num_local(p) for p in trained)  # they are not there yet
        self.most = 0.0
        """The bytes that the last trial took, in the process where it took most."""

    def __call__(self, size: int) -> tuple[float, float]:
        """Return which share of the memory so many rows take, and at most twice as many would."""
        team = Team.current()
        batch = self._training.read(size)
        try:
            before, peak = self._training.memory.taken_by(lambda: self._pass(batch))
        finally:
            self._training.student.zero_grad(set_to_none=True)
        self.most = -team.least(-(peak + self._later))
        # What is there whatever the size is counted twice but for what was there before: gradients are in it.
        promised = -team.least(-(2 * peak - before + self._later))
        return self.most / self._available, promised / self._available

    def _pass(self, batch: Batch) -> None:
        numerics, objective = self._numerics, self._training.objective
        for each in summed_as(self._sharding, objective, [batch] * TRIED_BATCHES):
            with numerics.autocast():
                loss, _ = objective(each.to(numerics.device))
            loss.backward()


def _num_local(parameter: nn.Parameter) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel())


def _too_small(size: int, why: str) -> str:
    return (
        f"memory is too small for {size} sequences at once, beside weights and optimizer ({why}); more GPUs, "
        "shorter sequences, `checkpoint_activations: true`, a smaller `micro_batch`, `teacher_precision: nf4` or "
        "`lora` need less"
    )
