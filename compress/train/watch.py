"""A training watched from outside: held-out loss, tasks, when to stop, and when to raise the alarm.

Looking changes nothing that training depends on, so a watched training gives the same weights; what was seen is part
of its checkpoint, so a resumed one sees the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import StepFailed
from compress.plugins import Context
from compress.records import JsonValue
from compress.train.batches import Rows
from compress.train.checkpoint import State
from compress.train.distributed import Team
from compress.train.held_out import held_out_batches, held_out_means
from compress.train.numerics import Numerics
from compress.train.objective import Objective
from compress.train.settings import TrainingSettings
from compress.train.tasks import ROWS_AT_ONCE, Answers, WatchedTasks

SHOWN = ("loss", "kl", "same_top")
"""What a person watching wants of the held-out figures; the record has all."""
ALARM_ERRORS = 3.0
"""Standard errors a task must fall by. Two would be usual for one comparison; here a task is compared with the best
of many looks, which luck has chosen."""


@dataclass(frozen=True)
class Look:
    """What one evaluation saw: means of held-out text, and the accuracy on each task."""

    held_out: dict[str, float]
    tasks: dict[str, float]


class Watch:
    """What has been seen so far, and the best of it."""

    def __init__(
        self, rows: Rows, settings: TrainingSettings, context: Context, tasks: WatchedTasks | None = None
    ) -> None:
        self._rows, self._settings, self._context, self._tasks = rows, settings, context, tasks
        self.looked_at = -1
        """The step before which the last look was, -1 before the first."""
        self.figures: dict[str, float] = {}
        """Of the last look, for the progress line."""
        self.num_worse = 0
        """Looks since the lowest held-out loss."""
        self.best_loss = math.inf
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}
        """Of the lowest loss, on the CPU; kept only where training may stop early."""
        self.best_answers: dict[str, list[bool]] = {}
        self.loss_at_best: dict[str, float] = {}
        """The held-out loss when a task was answered best."""
        self.alarmed: list[str] = []
        """Tasks that fell and have not been better since."""
        self.before: dict[str, dict[str, float]] = {}
        """What the first look saw."""

    def every(self, num_steps: int) -> int:
        """Return after how many steps to look again."""
        return max(1, round(self._settings.evaluate_every * num_steps))

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether to look before this step (after the last of them for `step` = `num_steps`)."""
        return step != self.looked_at and (step % self.every(num_steps) == 0 or step == num_steps)

    @property
    def stops(self) -> bool:
        """Whether it has been going nowhere for too long."""
        return self._settings.stop_after is not None and self.num_worse >= self._settings.stop_after

    def look(
        self,
        step: int,
        objective: nn.Module,
        student: PreTrainedModel,
        weights: dict[str, Tensor],
        numerics: Numerics,
    ) -> Look:
        """Evaluate the student as it is. Raises `StepFailed` for held-out data without anything to predict."""
        asked = self._settings
        size = numerics.evaluated(numerics.micro_batch)
        batches = held_out_batches(self._rows, asked.held_out_rows, size, asked.attend_across_documents)
        was_training = student.training
        devices = [torch.cuda.current_device()] if torch.device(numerics.device).type == "cuda" else []
        with torch.random.fork_rng(devices):
            student.eval()
            try:
                held_out = held_out_means(objective, batches, numerics)
                with numerics.autocast():
                    answers = self._answers(objective, student, numerics.evaluated(ROWS_AT_ONCE))
            finally:
                student.train(was_training)
        # A team stops or goes on as one, even if its processes should differ in a last bit.
        held_out, answers = Team.current().agree((held_out, answers))
        if not held_out:
            raise StepFailed("no token of the held-out rows is to be predicted: they hold no answers")
        return self.note(step, held_out, answers, weights)

    def _answers(self, objective: nn.Module, student: PreTrainedModel, rows_at_once: int) -> Answers:
        if self._tasks is None:
            return {}
        answers = partial(self._tasks.answers, rows_at_once=rows_at_once)
        return objective.whole(answers) if isinstance(objective, Objective) else answers(student)

    def note(
        self, step: int, held_out: dict[str, float], answers: Answers, weights: dict[str, Tensor]
    ) -> Look:
        """Weigh what was seen before a step, and warn where a task fell. `weights` are the student's."""
        self._weigh(step, held_out["loss"], weights)
        self._compare(answers, held_out["loss"])
        look = Look(held_out, {task: sum(right) / len(right) for task, right in answers.items()})
        self.looked_at = step
        shown = {f"held_out_{name}": held_out[name] for name in SHOWN if name in held_out}
        self.figures = shown | look.tasks
        if not self.before:
            self.before = {"held_out": look.held_out, "tasks": look.tasks}
        return look

    def weights_to_keep(self, num_steps: int) -> dict[str, Tensor]:
        """Return those of the lowest held-out loss after `num_steps` steps, none where they were not kept.

        Warn where they are the ones training began with.
        """
        if self.best_weights and self.best_step == 0 and num_steps:
            self._context.warn(
                f"nothing was learned: in {num_steps} steps the held-out loss was never below the "
                f"{self.best_loss:.3f} from before the first, so the result has the weights it began with. A lower "
                "`learning_rate` or a larger `stop_after` may help"
            )
        return self.best_weights

    def facts(self, batch_tokens: int) -> dict[str, JsonValue]:
        """Return what the record keeps beside the curve."""
        facts: dict[str, JsonValue] = {"before": self.before, "best_held_out_loss": self.best_loss}
        if self._settings.stop_after is not None:
            facts |= {"stopped_early": self.stops, "kept_tokens": self.best_step * batch_tokens}
        return facts

    def state(self) -> State:
        """Return all that the next look depends on."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def restore(self, state: State) -> None:
        """Become what `state` returned."""
        vars(self).update(state)

    def _weigh(self, step: int, loss: float, weights: dict[str, Tensor]) -> None:
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.num_worse = loss, step, 0
            if self._settings.stop_after is not None:
                self.best_weights = {name: w.detach().cpu().clone() for name, w in weights.items()}
        else:
            self.num_worse += 1

    def _compare(self, answers: Answers, loss: float) -> None:
        for task, right in answers.items():
            best = self.best_answers.get(task)
            if best is None or sum(right) > sum(best):
                self.best_answers = self.best_answers | {task: right}
                self.loss_at_best = self.loss_at_best | {task: loss}
                self.alarmed = [name for name in self.alarmed if name != task]
            elif task not in self.alarmed and loss < self.loss_at_best[task] and falls(best, right):
                self.alarmed = [*self.alarmed, task]
                before, now = (100 * sum(answer) / len(answer) for answer in (best, right))
                self._context.warn(
                    f"'{task}' fell from {before:.1f} % to {now:.1f} % of {len(right)} items while the held-out "
                    f"loss fell from {self.loss_at_best[task]:.3f} to {loss:.3f}: what is learned displaces what the "
                    "task needs. Other data, or a lower `learning_rate`, may keep it"
                )


def falls(before: Sequence[bool], now: Sequence[bool]) -> bool:
    """Whether fewer of the same items are right, by more than `ALARM_ERRORS` standard errors of the paired difference.

    With b items lost and c gained the difference b − c has the variance b + c − (b − c)²/n (Agresti 2013, §11.1).
    """
    lost = sum(a and not b for a, b in zip(before, now, strict=True))
    gained = sum(b and not a for a, b in zip(before, now, strict=True))
    variance = lost + gained - (lost - gained) ** 2 / len(before)
    return lost > gained and (lost - gained) ** 2 > ALARM_ERRORS**2 * variance
