"""The one training loop: every step that learns by gradient brings an objective and calls `fit`.

A step's data are a function of its number, its arithmetic is fixed at the first start, and all it changes is
in the checkpoint: so work killed at any moment ends in the bytes it would have ended in.
"""

import math
from contextlib import nullcontext, suppress

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import StepFailed, is_out_of_memory
from compress.models.determinism import has_no_deterministic
from compress.plugins import Context
from compress.records import JsonValue
from compress.train.attention import implementation
from compress.train.background import HostCopies
from compress.train.batches import Batches, Rows
from compress.train.checkpoint import Abandoned
from compress.train.distributed import Team
from compress.train.head import check_documents_apart
from compress.train.memory import fitted, giving_way, recompute_activations, tried_on
from compress.train.numerics import START, Numerics, applied, keep, resolve
from compress.train.objective import Objective
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.sharded import TeamCheckpoints
from compress.train.sharding import DIVIDED
from compress.train.stopping import Stopping
from compress.train.tasks import ROWS_AT_ONCE
from compress.train.team_memory import Account, GpuMemory, TeamTraining
from compress.train.tied import lookups_add_their_rows
from compress.train.training import Training
from compress.train.watch import Watch

GOOD_STEPS = 50
"""After so many steps a loss that is not finite is another accident, no consequence of the one before."""
MOST_SKIPPED = 3
"""As many batches in a row that teach nothing are no matter of the batches."""
STOP_WRITES, STOP_SLACK, SLOW_DISK = 3, 10.0, 2e8
"""A stop may take so many times what the last checkpoint took, and seconds besides; bytes a second before the first."""


def fit(
    objective: nn.Module,
    student: PreTrainedModel,
    data: Rows,
    settings: TrainingSettings,
    context: Context,
    account: Account,
    watch: Watch | None = None,
) -> dict[str, JsonValue]:
    """Train `student`, in place, by an objective that holds it; return the step's facts and its curve.

    objective: ``(Batch) -> (summed loss, number of tokens it is of)``. The student's weights are fp32 and stay so.
    `account`: of memory, by which a team divides. `watch` looks at it on the way and may end it early. Work is kept in
    ``context.partial`` and taken up from there.
    Raises `StepFailed` when the loss is not finite in several steps in a row, when nothing is to be learned, or memory
    is too small for one sequence.
    """
    schedule = Schedule.of(settings, data.sequence_length)

    def read(size: int) -> Batch:
        return Batches(data, size, context.seed, settings.attend_across_documents).at(0)

    def on_gpu(numerics: Numerics) -> Numerics:
        with applied(numerics):
            place(objective, numerics)
            fits = tried_on(objective, student.train(), read, numerics, settings.optimizer)
            return fitted(numerics, settings, schedule, fits, bool(student.supports_gradient_checkpointing))

    team = Team.current()
    is_new = team.agree(not (context.partial / START).exists())
    numerics = resolve(context.partial, settings, schedule, on_gpu, team)
    with applied(numerics):
        torch.manual_seed(context.seed)
        place(objective, numerics)
        sharding = DIVIDED
        if not team.is_launched and read(schedule.batch_sequences).positions is not None:
            check_documents_apart(student)
        if team.is_launched:
            together = TeamTraining(objective, student, read, settings, schedule, GpuMemory(), account)
            numerics, sharding = together.divide(numerics, is_new)
            if team.leads:
                keep(context.partial, numerics)
        recompute_activations(student, numerics.checkpoint_activations)
        batches = Batches(data, schedule.batch_sequences, context.seed, settings.attend_across_documents)
        training = Training(objective, student, batches, settings, schedule, numerics, watch, sharding)
        student.train()
        if numerics.device != "cpu":
            torch.cuda.reset_peak_memory_stats()  # trying sizes took as much as there is
        _run(training, settings, context)
    if not training.curve:
        raise StepFailed("in all that was read, no token was to be learned: the rows hold no answers")
    return training.facts()


def _run(training: Training, settings: TrainingSettings, context: Context) -> None:
    """Take all steps, and leave the student as it is used."""
    student = training.student
    try:
        with lookups_add_their_rows(student) if not Team.current().is_launched else nullcontext():
            _Loop(training, settings, context).run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StepFailed(_too_small(training.numerics, error)) from error
    finally:
        student.zero_grad(set_to_none=True)
        recompute_activations(student, False)
        student.eval()


def place(objective: nn.Module, numerics: Numerics) -> None:
    for model in (m for m in objective.children() if isinstance(m, PreTrainedModel)):
        model.set_attn_implementation(implementation(model, numerics.attention))
    if Team.current().is_launched:
        return  # a team's models come to their devices in parts
    if isinstance(objective, Objective):
        objective.place(numerics.device)
    else:
        objective.to(numerics.device)


def _host_copies(device: str) -> HostCopies | None:
    """Return what lets checkpoints be written beside training; on a processor they are not."""
    return None if device == "cpu" else HostCopies(device)


def _too_small(numerics: Numerics, error: BaseException) -> str:
    what = f"memory is too small for {numerics.micro_batch} sequences at once, beside weights and optimizer"
    helps = "shorter sequences, `checkpoint_activations: true` or `lora` need less"
    if Team.current().size > 1:
        what, helps = f"on one of the processes {what}", f"a smaller `micro_batch`, more processes, {helps}"
    return f"{what} ({_first_line(error)}); {helps}"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _Loop:
    """The steps that are left, each with what may go wrong in it."""

    def __init__(self, training: Training, settings: TrainingSettings, context: Context) -> None:
        self._training, self._settings, self._context = training, settings, context
        self._team = Team.current()
        self._stopping = Stopping(context, self._team)
        copies = _host_copies(training.numerics.device)
        self._checkpoints = TeamCheckpoints(context.partial, settings.checkpoint_seconds, self._team, copies)
        self._kept_step = 0
        """The step of the last checkpoint: before the first there is nothing to keep."""
        self._went_back_at: int | None = None
        self._said_it_waits = False

    def run(self) -> None:
        """Take the steps that are left, keeping checkpoints. Returns when all are taken, or raises."""
        try:
            self._run()
        except BaseException:
            with suppress(Exception):  # what is being written is whole before the process may end
                self._checkpoints.settle()
            raise
        self._checkpoints.settle()

    def _run(self) -> None:
        training, context = self._training, self._context
        if self._checkpoints.exist:
            self._checkpoints.restore(training)
            training.resume()
            self._kept_step = training.step
        self._tell_time_to_stop()
        try:
            self._look()
            while not training.done:
                self._take_step()
                self._look()
                context.progress(
                    training.num_tokens, training.total_tokens, "tokens", **training.all_figures()
                )
                if self._stopping.asked_after_step(training):
                    raise Abandoned
                self._keep_if_due()
        except Abandoned:
            self._keep(at_once=True)
            context.stop()
        training.finish()
        if said := training.decline():
            context.warn(said)

    def _keep_if_due(self) -> None:
        self._checkpoints.check()
        if self._checkpoints.due:
            self._keep()
            self._tell_time_to_stop()

    def _keep(self, at_once: bool = False) -> None:
        """Write a checkpoint of the last whole step, unless there is one; whole when this returns if `at_once`."""
        self._checkpoints.settle()
        if self._kept_step != self._training.step:
            self._checkpoints.write(self._training, at_once)
            self._kept_step = self._training.step
            if self._checkpoints.lacking and not self._said_it_waits:
                self._said_it_waits = True
                self._context.warn(
                    "training waits while checkpoints are written: the host's memory is too small for a copy that "
                    "could be written meanwhile"
                )

    def _tell_time_to_stop(self) -> None:
        """Say how long a stop may take: what is being written, then what is new, on a disk that others use too."""
        written = self._checkpoints.write_seconds
        if written is None:
            written = self._training.state_bytes / SLOW_DISK / self._team.size
        self._context.stop_takes(STOP_WRITES * written + STOP_SLACK)

    def _take_step(self) -> None:
        """Take one step; where its loss is not finite, once more from the last checkpoint, or else without learning."""
        learned = self._gradient()
        if learned is None:
            self._training.skip()
        elif all(map(math.isfinite, learned)):
            self._training.update(learned[0])
        else:
            self._try_again_or_skip(*learned)

    def _try_again_or_skip(self, loss: float, grad_norm: float) -> None:
        """Go back, as a fault of the machine will not come again; what does come again is in the data: skip it."""
        step = self._training.step
        seen = f"at step {step + 1} the loss was {loss} and the gradient's length {grad_norm}"
        if self._went_back_at is None or step >= self._went_back_at + GOOD_STEPS:
            self._went_back_at = step
            self._go_back(seen)
            return
        in_a_row = self._training.skip_batch()
        if in_a_row >= MOST_SKIPPED:
            raise StepFailed(
                f"training diverged: {seen}, and {in_a_row} steps in a row were so; try a lower "
                "`learning_rate`, or fp32"
            )
        self._context.warn(f"{seen}, again: nothing was learned from this batch")

    def _go_back(self, seen: str) -> None:
        training = self._training
        if not self._checkpoints.exist:
            self._context.warn(f"{seen}; took the step once more")
            training.rewind()
            return
        self._context.warn(f"{seen}; went back to the last checkpoint once")
        worked_on = training.num_resumed, training.team_sizes
        self._checkpoints.restore(training)
        training.num_resumed, training.team_sizes = worked_on
        self._kept_step = training.step

    def _gradient(self) -> tuple[float, float] | None:
        """Return what the step's gradient says, with less at once each time memory runs out."""
        while True:
            try:
                return self._training.compute_gradient(self._stopping.asked_within_step)
            except (RuntimeError, MemoryError) as error:
                numerics = self._training.numerics
                if has_no_deterministic(error) and numerics.sums_in_one_order:
                    less: Numerics | None = numerics.without_one_order(error)
                elif not is_out_of_memory(error) or self._team.size > 1:  # the others wait for this process
                    raise
                else:
                    less = giving_way(numerics, self._settings, self._training.can_recompute)
                # What the error's frames hold is free once it is gone: give way behind this block.
                failure = StepFailed(_too_small(numerics, error))
            self._give_way(less, failure)

    def _look(self) -> None:
        """Evaluate where that is due, less at once each time memory runs out."""
        while True:
            try:
                return self._training.look()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._team.size > 1:
                    raise
                numerics = self._training.numerics
                less = numerics.evaluating_less(numerics.micro_batch, ROWS_AT_ONCE)
                failure = StepFailed(f"memory is too small to evaluate one sequence ({_first_line(error)})")
            self._give_way(less, failure)

    def _give_way(self, less: Numerics | None, failure: StepFailed) -> None:
        """Go on so, and have a resumed training begin so. Raises `failure` where there is no way."""
        if less is None:
            raise failure
        training, gave_way = self._training, less.gave_way[len(self._training.numerics.gave_way) :]
        training.make_room(less)
        keep(self._context.partial, less)
        for said in gave_way:
            self._context.warn(
                f"at step {training.step + 1} memory ran out: {said}. From here on the result may differ in its last "
                "bits from that of a run with more memory"
            )
