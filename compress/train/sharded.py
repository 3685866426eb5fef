"""Checkpoints of a team: every process writes its part, and a team of another size can read them.

``sharded-N`` is a folder, N the step, with the tensors as `torch.distributed.checkpoint` writes them, ``rest.pt``
with all other state and a ``rank-R.pt`` a process with its random state. It is written beside the last one and
renamed when it is whole. A process alone writes one file instead (`compress.train.checkpoint`). Either is read by
both, so that work is taken up by any number of processes.
"""

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from compress.train.checkpoint import WORK_PER_WRITE, Checkpoints, State, sync_folder
from compress.train.distributed import Team
from compress.train.training import Training


class TeamCheckpoints:
    """The checkpoints of a training: written as its team does, read whoever wrote them."""

    def __init__(self, folder: Path, seconds: float, team: Team) -> None:
        self._team = team
        self._file = Checkpoints(folder, seconds)
        self._sharded = ShardedCheckpoints(folder, seconds, team)

    @property
    def exist(self) -> bool:
        return self._team.agree(self._file.exist or self._sharded.exist)

    @property
    def due(self) -> bool:
        return self._sharded.due if self._team.is_launched else self._file.due

    def write(self, training: Training) -> None:
        """Write a new checkpoint, then drop older ones, also of the other kind."""
        if not self._team.is_launched:
            self._file.write(training)
            self._sharded.drop()
            return
        self._sharded.write(training)
        if self._team.leads:
            self._file.drop()

    def restore(self, training: Training) -> None:
        """Make the training what the last checkpoint says, be it a file or sharded."""
        if not self._team.agree(self._file.written_at > self._sharded.written_at):
            self._sharded.restore(training)
        elif self._team.is_launched:
            _take_parts(training, self._file.read())
        else:
            self._file.restore(training)


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

    @property
    def written_at(self) -> int:
        """When the last was written, in nanoseconds; 0 where there is none."""
        last = self._last()
        return (last / "rest.pt").stat().st_mtime_ns if last else 0

    def drop(self) -> None:
        """Delete them: the work goes on from another."""
        _delete(list(self._folder.glob("sharded-*")))

    def write(self, training: Training) -> None:
        """Write a new checkpoint, then drop older ones. Whatever moment processes die at, a whole one is there."""
        started = time.monotonic()
        final = self._folder / f"sharded-{training.step:09d}"
        if self._team.agree(final.exists()):  # the work was taken up there, which is all that is new
            if self._team.leads:
                _note(_split(training)[1], final)
            return
        temporary = self._folder / "sharded.new"
        if self._team.leads:
            _delete([temporary, *self._folder.glob("deleted-*")])
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
        with warnings.catch_warnings():  # a process alone is told that it is alone
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
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
        _delete(older)


def _note(rest: State, checkpoint: Path) -> None:
    """Replace what a checkpoint says besides its tensors."""
    path = checkpoint / "rest.pt"
    # Which of a file and this was written last is told by the time it was written.
    written_at = path.stat().st_mtime_ns
    temporary = path.with_suffix(".new")
    torch.save(rest, temporary)
    os.utime(temporary, ns=(written_at, written_at))
    sync_folder(temporary)
    temporary.replace(path)


def _delete(folders: list[Path]) -> None:
    """Delete folders, each of which is no checkpoint any more before the first of its files is gone."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder.rename(folder.with_name(f"deleted-{folder.name.removeprefix('deleted-')}")))


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
    kept_in = getattr(training.optimizer, "moment_dtype", None)
    moments = {
        name: {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, dtype=kept_in),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=kept_in),
        }
        for name, parameter in _learning(training)
    }
    return {
        "student": weights,
        "optimizer": moments if rest["has_moments"] else {},
        "best": best if rest["has_best"] else {},
    }


def _take_parts(training: Training, state: State) -> None:
    """Make the training what a process alone has written, every process of its part."""
    optimizer, moments = training.optimizer, state["optimizer"]["state"]
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(learning):
        kept = moments.get(index, {})
        optimizer.state[parameter] = {name: _part(value, parameter) for name, value in kept.items()}
    like = training.weights()
    weights = {name: _part(value, like[name]) for name, value in state["student"].items()}
    if state["watch"]:
        best = state["watch"]["best_weights"]
        state["watch"]["best_weights"] = {
            name: _part(value, like[name]).cpu() for name, value in best.items()
        }
    training.take_up(weights, state)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor, as another of its shape is divided; a number is everyone's."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor) or whole.ndim == 0:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


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
