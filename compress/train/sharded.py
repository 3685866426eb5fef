"""Checkpoints of a team: every process writes its part, and a team of another size can read them.

``sharded-N`` is a folder, N the step, with the tensors as `torch.distributed.checkpoint` writes them, ``rest.pt``
with all other state and a ``rank-R.pt`` a process with its random state. It is written beside the last one and
renamed when it is whole. A process alone writes one file instead (`compress.train.checkpoint`). Either is read by
both, so that work is taken up by any number of processes.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from compress.train.background import Background, HostCopies
from compress.train.chance import random_state, set_random_state
from compress.train.checkpoint import Checkpoints, Clock, State, sync_folder
from compress.train.distributed import Team
from compress.train.training import Training

PATIENCE = timedelta(hours=2)
"""How long processes that write wait for each other: disks differ."""


class TeamCheckpoints:
    """The checkpoints of a training: written as its team does, read whoever wrote them."""

    def __init__(self, folder: Path, seconds: float, team: Team, copies: HostCopies | None = None) -> None:
        """With `copies` they are written while training goes on, where host memory allows it."""
        self._team = team
        self._file = Checkpoints(folder, seconds, copies)
        self._sharded = ShardedCheckpoints(folder, seconds, team, copies)

    @property
    def exist(self) -> bool:
        return self._team.agree(self._team.leads and (self._file.exist or self._sharded.exist))

    @property
    def due(self) -> bool:
        return self._current.due

    @property
    def write_seconds(self) -> float | None:
        """How long the last one took to write; `None` before the first."""
        return self._current.write_seconds

    @property
    def lacking(self) -> int:
        """Bytes of host memory that were too few for writing beside training."""
        return self._current.lacking

    def write(self, training: Training, at_once: bool = False) -> None:
        """Write a new checkpoint, then drop older ones, also of the other kind.

        It is whole when this returns, or, unless `at_once`, when `settle` does. Raises what the writing before raised.
        """
        other = self._file if self._team.is_launched else self._sharded
        self._current.write(training, at_once, then=other.drop)

    def settle(self) -> None:
        """Return when none is being written. Raises what the writing raised."""
        self._current.settle()

    def check(self) -> None:
        """Raise what went wrong since, if anything did."""
        self._current.check()

    def restore(self, training: Training) -> None:
        """Make the training what the last checkpoint says, be it a file or sharded."""
        self.settle()
        # The leader's clock and view of the folder count: others may see it late.
        if not self._team.agree(self._team.leads and self._file.written_at > self._sharded.written_at):
            self._sharded.restore(training)
        elif self._team.is_launched:
            _take_parts(training, self._file.read())
        else:
            self._file.restore(training)

    @property
    def _current(self) -> "Checkpoints | ShardedCheckpoints":
        return self._sharded if self._team.is_launched else self._file


class ShardedCheckpoints:
    """The checkpoints of a team's work in a folder that all of it sees."""

    def __init__(self, folder: Path, seconds: float, team: Team, copies: HostCopies | None = None) -> None:
        self._folder, self._team, self._copies = folder, team, copies
        self._clock = Clock(seconds)
        self._background = Background()
        self._group: dist.ProcessGroup | None = None
        """In which they write beside training, whose own exchange must not mix with theirs."""
        self.lacking = 0

    @property
    def exist(self) -> bool:
        return self._newest() is not None

    @property
    def due(self) -> bool:
        return self._team.agree(not self._background.busy and self._clock.due)

    @property
    def write_seconds(self) -> float | None:
        return self._clock.write_seconds

    @property
    def written_at(self) -> int:
        """When the last was written, in nanoseconds; 0 where there is none."""
        last = self._newest()
        return (last / "rest.pt").stat().st_mtime_ns if last else 0

    def drop(self) -> None:
        """Delete them: the work goes on from another."""
        _delete(list(self._folder.glob("sharded-*")))

    def write(
        self, training: Training, at_once: bool = False, then: Callable[[], None] = lambda: None
    ) -> None:
        """Write a new checkpoint, then drop older ones. Whatever moment processes die at, a whole one is there.

        `then`: what the leader does when it is whole.
        """
        self.settle()
        started = time.monotonic()
        tensors, rest = _split(training)
        state = {"tensors": tensors, "rest": rest, "random": random_state(training.numerics.device)}
        final = self._folder / f"sharded-{training.step:09d}"
        copied = None if at_once else self._copied(state)
        if copied is None:
            self._save(state, final, then, None)
            self._clock.written(started)
        else:
            halted = time.monotonic() - started
            self._background.start(partial(self._save_beside, copied, final, then, started, halted))

    def settle(self) -> None:
        self._background.settle()

    def check(self) -> None:
        self._background.check()

    def restore(self, training: Training) -> None:
        """Make the training what the last checkpoint says."""
        name = self._team.agree(last.name if self._team.leads and (last := self._newest()) else "")
        assert name
        last = self._folder / name
        rest: State = torch.load(last / "rest.pt", map_location="cpu", weights_only=True)
        training.clear_optimizer()
        tensors = _room(training, rest)
        with warnings.catch_warnings():  # a process alone is told that it is alone
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
            load(tensors, checkpoint_id=last / "tensors")
        for name, parameter in _learning(training):
            training.optimizer.state[parameter] = tensors["optimizer"].get(name, {})
        if rest["watch"]:
            rest["watch"]["best_weights"] = tensors.get("best", {})
        training.take_up(tensors["student"], rest)
        if self._team.agree(self._team.leads and len(list(last.glob("rank-*.pt"))) == self._team.size):
            own = last / f"rank-{self._team.rank}.pt"
            set_random_state(torch.load(own, map_location="cpu", weights_only=True))

    def _newest(self) -> Path | None:
        """Return the last one that this process sees. What all are to read the leader says."""
        return max(self._folder.glob("sharded-*"), default=None)

    def _copied(self, state: State) -> State | None:
        """Return a copy on the host; `None` where one of the processes has no memory for it."""
        if self._copies is None:
            return None
        self.lacking = max(0, self._copies.lacking(state))
        if any(self._team.sums(float(self.lacking > 0))):
            return None
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return dict(self._copies.of(state))

    def _save_beside(
        self, state: State, final: Path, then: Callable[[], None], started: float, halted: float
    ) -> None:
        self._save(state, final, then, self._group)
        self._clock.written(started, halted)

    def _save(
        self, state: State, final: Path, then: Callable[[], None], group: dist.ProcessGroup | None
    ) -> None:
        """Write a state, all together; return when it is whole and older ones are gone."""
        temporary = self._folder / "sharded.new"
        if self._team.leads:
            _delete([temporary, *self._folder.glob("deleted-*")])
            temporary.mkdir()
        dist.barrier(group)
        save(state["tensors"], checkpoint_id=temporary / "tensors", process_group=group)
        torch.save(state["random"], temporary / f"rank-{self._team.rank}.pt")
        dist.barrier(group)
        if self._team.leads:
            torch.save(state["rest"], temporary / "rest.pt")
            self._replace(temporary, final)
            then()
        dist.barrier(group)

    def _replace(self, temporary: Path, final: Path) -> None:
        older = [path for path in self._folder.glob("sharded-*") if path != final]
        for path in [*temporary.rglob("*"), temporary]:
            sync_folder(path)
        if not final.exists():
            temporary.rename(final)
        sync_folder(self._folder)
        _delete(older)


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
    training.clear_optimizer()
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
