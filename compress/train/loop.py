"""The one training loop: every step that learns by gradient brings an objective and calls `fit`.

A step's data are a function of its number, its arithmetic is fixed at the first start, and all it changes is
in the checkpoint: so work killed at any moment ends in the bytes it would have ended in.
"""

import math
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import StepFailed
from compress.plugins import Context
from compress.records import JsonValue
from compress.train.batches import Batches, Rows
from compress.train.distributed import Team, shard
from compress.train.memory import fitted, giving_way, is_out_of_memory, recompute_activations, tried_on
from compress.train.numerics import Numerics, applied, keep, resolve
from compress.train.objective import Objective
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.sharded import TeamCheckpoints
from compress.train.tied import lookups_add_their_rows
from compress.train.training import Training
from compress.train.watch import Watch


def fit(
    objective: nn.Module,
    student: PreTrainedModel,
    data: Rows,
    settings: TrainingSettings,
    context: Context,
    watch: Watch | None = None,
) -> dict[str, JsonValue]:
    """Train `student`, in place, by an objective that holds it; return the step's facts and its curve.

    objective: ``(Batch) -> (summed loss, number of tokens it is of)``. The student's weights are fp32 and stay so.
    `watch` looks at it on the way and may end it early. Work is kept in ``context.partial`` and taken up from there.
    Raises `StepFailed` when the loss is not finite again after a return to the last checkpoint, when nothing is to be
    learned, or memory is too small for one sequence.
    """
    schedule = Schedule.of(settings, data.sequence_length)

    def read(size: int) -> Batch:
        return Batches(data, size, context.seed, settings.attend_across_documents).at(0)

    def on_gpu(numerics: Numerics) -> Numerics:
        with applied(numerics):
            _place(objective, numerics)
            fits = tried_on(objective, student.train(), read, numerics, settings.optimizer)
            return fitted(numerics, settings, schedule, fits, bool(student.supports_gradient_checkpointing))

    team = Team.current()
    numerics = team.leader_first(lambda: resolve(context.partial, settings, schedule, on_gpu, team))
    with applied(numerics):
        torch.manual_seed(context.seed)
        _place(objective, numerics)
        recompute_activations(student, numerics.checkpoint_activations)
        if team.is_launched:
            shard(objective, numerics.device)
        batches = Batches(data, schedule.batch_sequences, context.seed, settings.attend_across_documents)
        training = Training(objective, student, batches, settings, schedule, numerics, watch)
        student.train()
        if numerics.device != "cpu":
            torch.cuda.reset_peak_memory_stats()  # trying sizes took as much as there is
        try:
            with lookups_add_their_rows(student) if not team.is_launched else nullcontext():
                _Loop(training, settings, context).run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise StepFailed(_too_small(training.numerics, error)) from error
        finally:
            student.zero_grad(set_to_none=True)
            recompute_activations(student, False)
            student.eval()
    if not training.curve:
        raise StepFailed("in all that was read, no token was to be learned: the rows hold no answers")
    return training.facts()


def _place(objective: nn.Module, numerics: Numerics) -> None:
    for model in (m for m in objective.children() if isinstance(m, PreTrainedModel)):
        # Scores that are bent (Gemma 2) only plain products compute.
        model.set_attn_implementation(numerics.attention if model._supports_sdpa else "eager")
    if Team.current().is_launched:
        return  # a team's models come to their devices in parts
    if isinstance(objective, Objective):
        objective.place(numerics.device)
    else:
        objective.to(numerics.device)


def _too_small(numerics: Numerics, error: BaseException) -> str:
    return (
        f"memory is too small for {numerics.micro_batch} sequences at once, beside weights and optimizer "
        f"({_first_line(error)}); shorter sequences, `checkpoint_activations: true` or `lora` need less"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _Loop:
    """The steps that are left, each with what may go wrong in it."""

    def __init__(self, training: Training, settings: TrainingSettings, context: Context) -> None:
        self._training, self._settings, self._context = training, settings, context
        self._team = Team.current()
        self._checkpoints = TeamCheckpoints(context.partial, settings.checkpoint_seconds, self._team)
        self._rolled_back = False

    def run(self) -> None:
        """Take the steps that are left, keeping checkpoints. Returns when all are taken, or raises."""
        training, checkpoints, context = self._training, self._checkpoints, self._context
        if checkpoints.exist:
            checkpoints.restore(training)
            training.resume()
        checkpoints.write(training)
        training.look()
        while not training.done:
            self._take_step()
            training.look()
            context.progress(training.num_tokens, training.total_tokens, "tokens", **training.all_figures())
            if self._team.agree(context.stopping):
                checkpoints.write(training)
                context.stop()
            if checkpoints.due:
                checkpoints.write(training)
        training.finish()

    def _take_step(self) -> None:
        """Take one step; where its loss is not finite, go back to the last checkpoint once."""
        learned = self._gradient()
        if learned is None:
            self._training.skip()
        elif all(map(math.isfinite, learned)):
            self._training.update(learned[0])
        else:
            self._roll_back(*learned)

    def _roll_back(self, loss: float, grad_norm: float) -> None:
        at = self._training.step + 1
        seen = f"at step {at} the loss was {loss} and the gradient's length {grad_norm}"
        if self._rolled_back:
            raise StepFailed(f"training diverged: {seen}, twice; try a lower `learning_rate`, or fp32")
        self._rolled_back = True
        self._context.warn(f"{seen}; went back to the last checkpoint once")
        self._checkpoints.restore(self._training)

    def _gradient(self) -> tuple[float, float] | None:
        """Return what the step's gradient says, with less at once each time memory runs out."""
        while True:
            try:
                return self._training.compute_gradient()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._team.size > 1:  # the others wait for this process
                    raise
                # What the error's frames hold is free once it is gone: give way behind this block.
                failure = StepFailed(_too_small(self._training.numerics, error))
            self._give_way(failure)

    def _give_way(self, failure: StepFailed) -> None:
        training = self._training
        less = giving_way(training.numerics, self._settings, training.can_recompute)
        if less is None:
            raise failure
        training.make_room(less)
        keep(self._context.partial, less)
        self._context.warn(
            f"at step {training.step + 1} memory ran out: {less.gave_way[-1]}. From here on the result may differ in "
            "its last bits from that of a run with more memory"
        )
