"""A training under way: what one step does, and everything it changes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.records import CurvePoint, JsonValue
from compress.train.batches import Batches
from compress.train.chance import random_state, set_random_state
from compress.train.checkpoint import Abandoned, State
from compress.train.decline import decline
from compress.train.distributed import Team, reshard, summed_as
from compress.train.memory import recompute_activations
from compress.train.numerics import Numerics
from compress.train.optimizer import adamw, average_and_clip
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.sharding import DIVIDED, Sharding
from compress.train.watch import Watch

CURVE_POINTS = 200

_COUNTERS = (
    "step",
    "learned_tokens",
    "seconds",
    "num_resumed",
    "team_sizes",
    "skipped_batches",
    "curve",
    "recent",
)


def _never() -> bool:
    return False


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
        sharding: Sharding = DIVIDED,
    ) -> None:
        self._objective, self.student, self._batches = objective, student, batches
        self._team, self._sharding = Team.current(), sharding
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
        self.skipped_batches: list[int] = []
        """The steps, from 1, whose gradient was not finite a second time: nothing was learned in them."""
        self._chance: State = {}
        self.last_seconds = 0.0
        """How long the last step took."""
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
    def batch_sequences(self) -> int:
        """How many rows a step learns from, in all processes together."""
        return self._schedule.batch_sequences

    @property
    def total_tokens(self) -> int:
        return self._schedule.num_tokens

    def compute_gradient(self, asked_to_stop: Callable[[], bool] = _never) -> tuple[float, float] | None:
        """Give the student the clipped gradient of the step's mean loss; return that loss and the length.

        However the batch is split, sums are divided once, by the tokens of the whole of it. `None` when it has none
        that are to be learned (rows of a long question): there is no mean. `asked_to_stop` is asked between two parts
        of the batch. Raises `Abandoned` when it says so; as after any other error the step was never begun.
        """
        self._step_started = time.monotonic()
        self._chance = random_state(self.numerics.device)
        try:
            own, own_tokens = self._sum_gradients(asked_to_stop)
        except Exception:
            self.rewind()
            raise
        total, num_tokens = self._team.sums(float(own), own_tokens)
        self._num_targets = round(num_tokens)
        if num_tokens == 0:
            return None
        # A team's gradients are means over its processes already.
        share = num_tokens / self._team.size
        grad_norm = average_and_clip(self.student.parameters(), share, self._max_grad_norm)
        return total / num_tokens, grad_norm

    def rewind(self) -> None:
        """Become what this was before the step's gradient was computed."""
        self.optimizer.zero_grad(set_to_none=True)
        set_random_state(self._chance)

    def _sum_gradients(self, asked_to_stop: Callable[[], bool]) -> tuple[Tensor, int]:
        """Give the student the gradient of this process's summed loss; return that loss, and of how many tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        numerics = self.numerics
        total, num_tokens = torch.zeros((), device=numerics.device), 0
        parts = self._team.share(self._batches.at(self.step), numerics.micro_batch)
        for number, batch in enumerate(summed_as(self._sharding, self._objective, parts)):
            if number and asked_to_stop():
                raise Abandoned
            with numerics.exact():
                with numerics.autocast():
                    loss, count = self._objective(batch.to(numerics.device))
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
        self.clear_gradient()

    def clear_gradient(self) -> None:
        """Give back the memory of the gradient, and what lies unused."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.numerics.device != "cpu":
            torch.cuda.empty_cache()

    def clear_optimizer(self) -> None:
        """Give back the memory of the optimizer's state, too: what is read in its place needs as much."""
        self.optimizer.state.clear()
        self.clear_gradient()

    def look(self) -> None:
        """Evaluate the student where that is due, and note it at the curve's point of this step."""
        watch = self._watch
        if watch is None or not watch.is_due(self.step, self._schedule.num_steps):
            return
        self.optimizer.zero_grad(set_to_none=True)  # it has been used, and looking takes memory
        look = watch.look(self.step, self._objective, self.student, self.weights(), self.numerics)
        reshard(self._objective)
        if self.curve and self.curve[-1]["tokens"] == self.num_tokens:
            self.curve[-1] |= {"held_out": look.held_out, "tasks": look.tasks}

    def finish(self) -> None:
        """Return to the weights of the lowest held-out loss where they were kept."""
        if self._watch is not None and (weights := self._watch.weights_to_keep(self.step)):
            self._load(weights)

    def decline(self) -> str | None:
        """Return what to say where the weights that are left are worse than those it began with."""
        watch = self._watch
        if watch is not None and watch.best_weights:
            return None  # those of the lowest loss were kept
        before = watch.before.get("held_out") if watch is not None else None
        return decline(self.curve, before)

    def weights(self) -> dict[str, Tensor]:
        """Return what training changes of the student: its parameters that learn, and its buffers."""
        frozen = {
            name for name, p in self.student.named_parameters(remove_duplicate=False) if not p.requires_grad
        }
        return {name: value for name, value in self.student.state_dict().items() if name not in frozen}

    def skip(self) -> None:
        """Pass over a step that has nothing to learn: weights and the optimizer's memory stay as they are."""
        self._advance(0.0, 0.0)

    def skip_batch(self) -> int:
        """Pass over a step whose gradient is not finite; return how many in a row were passed over so."""
        self.optimizer.zero_grad(set_to_none=True)
        self._num_targets = 0
        self.skipped_batches = [*self.skipped_batches, self.step + 1]
        self.skip()
        run = self.skipped_batches
        return next((n for n in range(len(run)) if run[-1 - n] != run[-1] - n), len(run))

    def _advance(self, num_losses: float, loss: float) -> None:
        learning_rate = self._schedule.learning_rate(self.step)
        self.step += 1
        self.learned_tokens += self._num_targets
        seconds = time.monotonic() - self._step_started
        self.seconds += seconds
        self.last_seconds = seconds
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
        if self.skipped_batches:
            facts["skipped_batches"] = list(self.skipped_batches)
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
        facts: dict[str, JsonValue] = {}
        if self._team.is_launched:
            facts = {"processes": self._team.size, "sharding": self._sharding.facts()}
        if len(self.team_sizes) > 1:
            sizes = ", then ".join(map(str, self.team_sizes))
            facts |= {"bit_exact": False, "bit_exact_ended_by": f"it was worked on by {sizes} processes"}
        return facts

    @property
    def state_bytes(self) -> int:
        """How much a checkpoint holds, about: weights that learn, and the optimizer's moments."""
        trained = (p for p in self.student.parameters() if p.requires_grad)
        return sum(3 * p.numel() * p.element_size() for p in trained)

    def state(self) -> State:
        """Return all that the next step depends on."""
        return {
            "student": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            **random_state(self.numerics.device),
            **self.rest(),
        }

    def restore(self, state: State) -> None:
        """Become what `state` returned, in the memory there is: what was before is given back first."""
        self.clear_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state)
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
            setattr(self, name, rest.get(name, getattr(self, name)))

    def _load(self, weights: dict[str, Tensor]) -> None:
        unknown = self.student.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown and weights.keys() == self.weights().keys(), "a checkpoint of another student"
