"""Training on several processes: what they share, and what each of them holds.

Every process holds a part of student, teacher and optimizer (FSDP2), reads its share of each batch, and knows the sums
over all of them: so whatever is decided from loss, gradient or clock is decided alike. A process alone is a team of one
and computes as if there were no such thing.

Only the leader opens weights. The others have outlines of the models, whose parameters take no memory, until they get
their parts: so however many processes there are, host memory holds a model once, and no device holds it whole.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.models.checkpoint import load_model, outline_model

Value = TypeVar("Value")

CALLED = ("held_out", "whole")
"""Methods of an objective that run its models besides `forward`: weights must be gathered for them, too."""


@dataclass(frozen=True)
class Team:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    is_launched: bool = False
    """Whether torchrun started it, be it with one process: then what it keeps is sharded."""

    @classmethod
    def current(cls) -> "Team":
        """Return the team this process is in."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), is_launched=True)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sums(self, *values: float) -> list[float]:
        """Return the sums of values over all processes."""
        if not self.is_launched:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def agree(self, value: Value) -> Value:
        """Return the leader's value: a small object of plain types."""
        if not self.is_launched:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Return when all have come here."""
        if self.is_launched:
            dist.barrier()

    def leader_first(self, work: Callable[[], Value]) -> Value:
        """Return what `work` returns, done by the leader before the others: they find what it has written."""
        if not self.leads:
            self.wait()
        done = work()
        if self.leads:
            self.wait()
        return done

    def share(self, batch: Batch, micro_batch: int) -> Iterator[Batch]:
        """Yield this process's rows of a batch, at most so many at once, as often in every process.

        Where rows run out, one is read of which nothing is learned: gathering weights takes all processes.
        """
        if self.size == 1:
            yield from batch.split(micro_batch)
            return
        most = -(-len(batch) // self.size)
        for start in range(0, most, micro_batch):
            places = range(start, min(start + micro_batch, most))
            rows = [place * self.size + self.rank for place in places]
            rows = [row for row in rows if row < len(batch)]
            yield batch.rows_at(rows) if rows else _unlearned(batch.rows_at([0]))


def load_at_leader(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in a folder, in eval mode: in the leader with its weights on the CPU, else without (meta).

    Raises as `compress.models.checkpoint.load_model` does, in the leader.
    """
    return (load_model if Team.current().leads else outline_model)(folder, dtype=dtype)


def shard(objective: nn.Module, device: str) -> None:
    """Give every process its part of what the leader holds of the objective's models, layer by layer, on its device.

    The objective's own call gathers what lies outside the student's layers; that part of a teacher stays whole, as does
    a teacher in 8 or 4 bits, which every process has opened: its layers hold more than parameters, and are small.
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for model in _models(objective):
        if not all(parameter.is_floating_point() for parameter in model.parameters()):
            continue
        for layer in _layers(model):
            _hand_out(layer, device)
            fully_shard(layer, mesh=mesh)
        _hand_out(model, device)
    student: PreTrainedModel = objective.student
    others = [model for model in _models(objective) if model is not student]
    kept_whole = {p for model in others for p in model.parameters() if not hasattr(p, "placements")}
    fully_shard(objective, mesh=mesh, ignored_params=kept_whole)
    for name in filter(partial(hasattr, objective), CALLED):
        register_fsdp_forward_method(objective, name)


def reshard(objective: nn.Module) -> None:
    """Drop what an evaluation has gathered: only a backward pass would."""
    if isinstance(objective, FSDPModule):
        objective.reshard()


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """Return the gathered state on the CPU, in the leader; nothing in the others."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def without_weights(model: nn.Module, *others: Any) -> Any:
    """Return copies of a model, its parameters without memory (meta), and of what refers to it."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy((model, *others), empty)


def _hand_out(module: nn.Module, device: str) -> None:
    """Put the leader's parameters and buffers into every process's module; what is sharded already stays as it is."""
    stores: Iterator[dict[str, Any]] = (s for m in module.modules() for s in (m._parameters, m._buffers))
    places = [
        (store, name)
        for store in stores
        for name, tensor in store.items()
        if tensor is not None and not isinstance(tensor, DTensor)
    ]
    dtypes = Team.current().agree([store[name].dtype for store, name in places])
    handed: dict[Tensor, Tensor] = {}  # what is in several places stays one
    for (store, name), dtype in zip(places, dtypes, strict=True):
        own = store[name]
        if own not in handed:
            handed[own] = _of_leader(own, dtype, device)
        store[name] = handed[own]


def _of_leader(own: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """Return the leader's tensor, on the device. `own`: what this process has in its place, of the same shape."""
    leads = Team.current().leads
    whole = own.detach().to(device) if leads else torch.empty(own.shape, dtype=dtype, device=device)
    dist.broadcast(whole, src=0)
    return nn.Parameter(whole, own.requires_grad) if isinstance(own, nn.Parameter) else whole


def _unlearned(batch: Batch) -> Batch:
    return replace(batch, learned=torch.zeros_like(batch.ids, dtype=torch.bool))


def _models(objective: nn.Module) -> list[PreTrainedModel]:
    return [child for child in objective.children() if isinstance(child, PreTrainedModel)]


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
