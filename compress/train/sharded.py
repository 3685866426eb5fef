"""Checkpoints of a team: every process writes its part, and a team of another size can read them.

``sharded-N`` is a folder, N the step, with the tensors as `torch.distributed.checkpoint` writes them, ``rest.pt``
with all other state and a ``rank-R.pt`` a process with its random state. It is written beside the last one and
renamed when it is whole.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from compress.train.checkpoint import WORK_PER_WRITE, State, sync_folder
from compress.train.distributed import Team
from compress.train.training import Training


class ShardedCheckpoints:
    """The checkpoints of a team's work in a folder that all of it sees."""

    def __init__(self, folder: Path, seconds: float, team: Team) -> None:
        self._folder, self._seconds, self._team = folder, seconds, team
        self._due_at = time.monotonic()

    @property
    def exist(self) -> bool:
        return self._last() is not None

    @property
    def due(self) -> bool:
        return self._team.agree(time.monotonic() >= self._due_at)

    def write(self, training: Training) -> None:
        """Write a new checkpoint, then drop older ones. Whatever moment processes die at, a whole one is there."""
        started = time.monotonic()
        final = self._folder / f"sharded-{training.step:09d}"
        if self._team.agree(final.exists()):
            return
        temporary = self._folder / "sharded.new"
        if self._team.leads:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        self._team.wait()
        tensors, rest = _split(training)
        save(tensors, checkpoint_id=temporary / "tensors")
        torch.save(_random_state(), temporary / f"rank-{self._team.rank}.pt")
        self._team.wait()
        if self._team.leads:
            torch.save(rest, temporary / "rest.pt")
            self._replace(temporary, final)
        self._team.wait()
        now = time.monotonic()
        self._due_at = now + max(self._seconds, WORK_PER_WRITE * (now - started))

    def restore(self, training: Training) -> None:
        """Make the training what the last checkpoint says."""
        last = self._last()
        assert last is not None
        rest: State = torch.load(last / "rest.pt", map_location="cpu", weights_only=True)
        tensors = _room(training, rest)
        load(tensors, checkpoint_id=last / "tensors")
        for name, parameter in _learning(training):
            training.optimizer.state[parameter] = tensors["optimizer"].get(name, {})
        if rest["watch"]:
            rest["watch"]["best_weights"] = tensors.get("best", {})
        training.take_up(tensors["student"], rest)
        random_state = last / f"rank-{self._team.rank}.pt"
        if random_state.exists() and len(list(last.glob("rank-*.pt"))) == self._team.size:
            _set_random_state(torch.load(random_state, map_location="cpu", weights_only=True))

    def _last(self) -> Path | None:
        return max(self._folder.glob("sharded-*"), default=None)

    def _replace(self, temporary: Path, final: Path) -> None:
        older = list(self._folder.glob("sharded-*"))
        for path in [*temporary.rglob("*"), temporary]:
            sync_folder(path)
        temporary.rename(final)
        sync_folder(self._folder)
        for path in older:
            shutil.rmtree(path)


def _split(training: Training) -> tuple[dict[str, Any], State]:
    """Return the tensors that are sharded, and all other state."""
    rest = training.rest()
    best = rest["watch"].pop("best_weights", {})
    state = training.optimizer.state
    moments = {name: dict(state[p]) for name, p in _learning(training) if p in state}
    rest |= {"has_best": bool(best), "has_moments": bool(moments)}
    return {"student": training.weights(), "optimizer": moments, "best": best}, rest


def _room(training: Training, rest: State) -> dict[str, Any]:
    """Return tensors such as were written, for what they were to be read into."""
    weights = training.weights()
    best = {name: torch.zeros_like(value, device="cpu") for name, value in weights.items()}
    moments = {
        name: {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for name, parameter in _learning(training)
    }
    return {
        "student": weights,
        "optimizer": moments if rest["has_moments"] else {},
        "best": best if rest["has_best"] else {},
    }


def _learning(training: Training) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in training.student.named_parameters() if p.requires_grad)


def _random_state() -> State:
    state: State = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: State) -> None:
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"])
