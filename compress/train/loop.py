"""The one training loop: every step that learns by gradient brings an objective and calls `fit`.

A step's data are a function of its number, its arithmetic is fixed at the first start, and all it changes is
in the checkpoint: so work killed at any moment ends in the bytes it would have ended in.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.errors import StepFailed
from compress.plugins import Context
from compress.records import JsonValue
from compress.train.batches import Batches, Rows
from compress.train.checkpoint import Checkpoints
from compress.train.numerics import applied, resolve
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
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
    learned, or a GPU is too small for the micro-batch.
    """
    schedule = Schedule.of(settings, data.sequence_length)
    numerics = resolve(context.partial, settings, schedule, student)
    with applied(numerics):
        torch.manual_seed(context.seed)
        for model in (m for m in objective.children() if isinstance(m, PreTrainedModel)):
            model.set_attn_implementation(numerics.attention)
        objective.to(numerics.device)
        batches = Batches(data, schedule.batch_sequences, context.seed, settings.attend_across_documents)
        training = Training(objective, student, batches, settings, schedule, numerics, watch)
        student.train()
        try:
            _take_all_steps(training, Checkpoints(context.partial, settings.checkpoint_seconds), context)
            training.finish()
        except torch.cuda.OutOfMemoryError as error:
            raise StepFailed(
                f"the GPU's memory is too small for {numerics.micro_batch} sequences of "
                f"{schedule.sequence_length} tokens at once; set a smaller `micro_batch`"
            ) from error
        finally:
            student.zero_grad(set_to_none=True)
            student.eval()
    if not training.curve:
        raise StepFailed("in all that was read, no token was to be learned: the rows hold no answers")
    return training.facts()


def _take_all_steps(training: Training, checkpoints: Checkpoints, context: Context) -> None:
    """Take the steps that are left, keeping checkpoints. Returns when all are taken, or raises."""
    if checkpoints.exist:
        training.restore(checkpoints.read())
        training.num_resumed += 1
    checkpoints.write(training.state())
    rolled_back = False
    training.look()
    while not training.done:
        if seen := _take_step(training):
            if rolled_back:
                raise StepFailed(f"training diverged: {seen}, twice; try a lower `learning_rate`, or fp32")
            rolled_back = True
            context.warn(f"{seen}; went back to the last checkpoint once")
            training.restore(checkpoints.read())
        training.look()
        context.progress(training.num_tokens, training.total_tokens, "tokens", **training.all_figures())
        if context.stopping:
            checkpoints.write(training.state())
            context.stop()
        if checkpoints.due:
            checkpoints.write(training.state())


def _take_step(training: Training) -> str | None:
    """Take one step; where its loss is not finite, take none and return what was seen."""
    learned = training.compute_gradient()
    if learned is None:
        training.skip()
    elif all(map(math.isfinite, learned)):
        training.update(learned[0])
    else:
        loss, grad_norm = learned
        return f"at step {training.step + 1} the loss was {loss} and the gradient's length {grad_norm}"
    return None
