"""A training under way: what one step does, and everything it changes."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.records import CurvePoint, JsonValue
from compress.train.batches import Batches
from compress.train.checkpoint import State
from compress.train.distributed import Team, reshard
from compress.train.memory import recompute_activations
from compress.train.numerics import Numerics, deterministic, has_no_deterministic
from compress.train.optimizer import adamw, average_and_clip
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.watch import Watch

CURVE_POINTS = 200

_COUNTERS = ("step", "learned_tokens", "seconds", "num_resumed", "team_sizes", "curve", "recent")


class Training:
    """The state of a training, one step at a time."""

    def __init__(
        self,
        objective: nn.Module,
        student: PreTrainedModel,
        batches: Batches,
        settings: TrainingSettings,
        schedule: Schedule,
        numerics: Numerics,
        watch: Watch | None = None,
    ) -> None:
        self._objective, self.student, self._batches = objective, student, batches
        self._team = Team.current()
        self._schedule, self.numerics, self._watch = schedule, numerics, watch
        self._max_grad_norm = settings.max_grad_norm
        self.optimizer = adamw(student, settings)
        self._stride = -(-schedule.num_steps // CURVE_POINTS)
        self._step_started = 0.0
        self.step = 0
        self.learned_tokens = 0
        """How many tokens were predicted, in all steps taken and by all processes: of questions none is."""
        self._num_targets = 0
        self.seconds = 0.0
        self.num_resumed = 0
        self.team_sizes = [self._team.size]
        """How many processes worked on it, a number for each change."""
        self.curve: list[dict[str, Any]] = []
        self.recent = [0.0, 0.0, 0.0, 0.0]
        """Since the last point of the curve: steps, steps with something to learn, their summed losses, seconds."""

    @property
    def done(self) -> bool:
        """Whether all steps are taken, or the watch has seen enough."""
        return self.step >= self._schedule.num_steps or (self._watch is not None and self._watch.stops)

    @property
    def num_tokens(self) -> int:
        return self.step * self._schedule.batch_tokens

    @property
    def total_tokens(self) -> int:
        return self._schedule.num_tokens

    def compute_gradient(self) -> tuple[float, float] | None:
        """Give the student the clipped gradient of the step's mean loss; return that loss and the length.

        However the batch is split, sums are divided once, by the tokens of the whole of it. `None` when it has none
        that are to be learned (rows of a long question): there is no mean.
        """
        self._step_started = time.monotonic()
        try:
            own, own_tokens = self._sum_gradients()
        except RuntimeError as error:
            if not has_no_deterministic(error):
                raise
            self.numerics = self.numerics.without_one_order(error)
            own, own_tokens = self._sum_gradients()
        total, num_tokens = self._team.sums(float(own), own_tokens)
        self._num_targets = round(num_tokens)
        if num_tokens == 0:
            return None
        # A team's gradients are means over its processes already.
        share = num_tokens / self._team.size
        grad_norm = average_and_clip(self.student.parameters(), share, self._max_grad_norm)
        return total / num_tokens, grad_norm

    def _sum_gradients(self) -> tuple[Tensor, int]:
        """Give the student the gradient of this process's summed loss; return that loss, and of how many tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        numerics = self.numerics
        total, num_tokens = torch.zeros((), device=numerics.device), 0
        for batch in self._team.share(self._batches.at(self.step), numerics.micro_batch):
            with numerics.autocast():
                loss, count = self._objective(batch.to(numerics.device))
            with deterministic(warn_only=False) if numerics.sums_in_one_order else nullcontext():
                loss.backward()
            total += loss.detach()
            num_tokens += count
        return total, num_tokens

    def update(self, loss: float) -> None:
        """Take the optimizer's step and note how it went."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate(self.step)
        self.optimizer.step()
        self._advance(1.0, loss)

    @property
    def can_recompute(self) -> bool:
        """Whether the student can compute its activations a second time."""
        return bool(self.student.supports_gradient_checkpointing)

    def make_room(self, less: Numerics) -> None:
        """Go on with what needs less memory, and give back what the failed attempt left."""
        self.numerics = less
        recompute_activations(self.student, less.checkpoint_activations)
        self.optimizer.zero_grad(set_to_none=True)
        if less.device != "cpu":
            torch.cuda.empty_cache()

    def look(self) -> None:
        """Evaluate the student where that is due, and note it at the curve's point of this step."""
        watch = self._watch
        if watch is None or not watch.is_due(self.step, self._schedule.num_steps):
            return
        look = watch.look(self.step, self._objective, self.student, self.weights(), self.numerics)
        reshard(self._objective)
        if self.curve and self.curve[-1]["tokens"] == self.num_tokens:
            self.curve[-1] |= {"held_out": look.held_out, "tasks": look.tasks}

    def finish(self) -> None:
        """Return to the weights of the lowest held-out loss where they were kept."""
        if self._watch is not None and (weights := self._watch.weights_to_keep(self.step)):
            self._load(weights)

    def weights(self) -> dict[str, Tensor]:
        """Return what training changes of the student: its parameters that learn, and its buffers."""
        frozen = {
            name for name, p in self.student.named_parameters(remove_duplicate=False) if not p.requires_grad
        }
        return {name: value for name, value in self.student.state_dict().items() if name not in frozen}

    def skip(self) -> None:
        """Pass over a step that has nothing to learn: weights and the optimizer's memory stay as they are."""
        self._advance(0.0, 0.0)

    def _advance(self, num_losses: float, loss: float) -> None:
        learning_rate = self._schedule.learning_rate(self.step)
        self.step += 1
        self.learned_tokens += self._num_targets
        seconds = time.monotonic() - self._step_started
        self.seconds += seconds
        news = (1.0, num_losses, loss, seconds)
        self.recent = [a + b for a, b in zip(self.recent, news, strict=True)]
        # A stretch without a loss has no point: its steps count towards the next.
        if (self.step % self._stride == 0 or self._ends_stretch()) and self.recent[1]:
            point = {"tokens": self.num_tokens, "learning_rate": learning_rate, **self.figures()}
            self.curve.append(CurvePoint.model_validate(point).model_dump())
            self.recent = [0.0, 0.0, 0.0, 0.0]

    def _ends_stretch(self) -> bool:
        last = self._schedule.num_steps
        return self.step == last or (self._watch is not None and self._watch.is_due(self.step, last))

    def figures(self) -> dict[str, float]:
        """Return mean loss and speed since the last point of the curve, or at it; nothing before there is a loss."""
        steps, num_losses, losses, seconds = self.recent
        if num_losses:
            speed = steps * self._schedule.batch_tokens / seconds
            return {"loss": losses / num_losses, "tokens_per_second": speed}
        last = self.curve[-1] if self.curve else {}
        return {name: last[name] for name in ("loss", "tokens_per_second") if name in last}

    def all_figures(self) -> dict[str, float]:
        """Return what to show of the training under way: these figures, and what was seen at the last look."""
        return self.figures() | (self._watch.figures if self._watch else {})

    def facts(self) -> dict[str, JsonValue]:
        """Return what the record keeps."""
        facts: dict[str, JsonValue] = {
            "loss": self.curve[-1]["loss"],
            "tokens": self.num_tokens,
            "learned_tokens": self.learned_tokens,
            "trained_parameters": sum(p.numel() for p in self.student.parameters() if p.requires_grad),
            "optimizer_steps": self.step,
            "batch_tokens": self._schedule.batch_tokens,
            "tokens_per_second": self.num_tokens / self.seconds,
            **self.numerics.facts(),
            "resumed": self.num_resumed,
            **self._team_facts(),
            "curve": self.curve,
        }
        if self._watch is not None:
            facts |= self._watch.facts(self._schedule.batch_tokens)
        if self.numerics.device != "cpu":
            facts["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
        return facts

    def resume(self) -> None:
        """Note that the work was taken up again, and by how many."""
        self.num_resumed += 1
        if self.team_sizes[-1] != self._team.size:
            self.team_sizes = [*self.team_sizes, self._team.size]

    def _team_facts(self) -> dict[str, JsonValue]:
        facts: dict[str, JsonValue] = {"processes": self._team.size} if self._team.is_launched else {}
        if len(self.team_sizes) > 1:
            sizes = ", then ".join(map(str, self.team_sizes))
            facts |= {"bit_exact": False, "bit_exact_ended_by": f"it was worked on by {sizes} processes"}
        return facts

    def state(self) -> State:
        """Return all that the next step depends on."""
        return {
            "student": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.numerics.device != "cpu" else None,
            **self.rest(),
        }

    def restore(self, state: State) -> None:
        """Become what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.take_up(state["student"], state)

    def rest(self) -> State:
        """Return the part of the state that is neither the student's, the optimizer's nor chance's."""
        watch = self._watch.state() if self._watch else {}
        return {"watch": watch, **{name: getattr(self, name) for name in _COUNTERS}}

    def take_up(self, weights: dict[str, Tensor], rest: State) -> None:
        """Become what `weights` and `rest` returned."""
        self._load(weights)
        if self._watch is not None:
            self._watch.restore(rest["watch"])
        for name in _COUNTERS:
            setattr(self, name, rest[name])

    def _load(self, weights: dict[str, Tensor]) -> None:
        unknown = self.student.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown and weights.keys() == self.weights().keys(), "a checkpoint of another student"
