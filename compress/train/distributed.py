"""Training on several processes: what they share, and what each of them holds.

Every process holds a part of student, teacher and optimizer (FSDP2), reads its share of each batch, and knows the sums
over all of them: so whatever is decided from loss, gradient or clock is decided alike. A process alone is a team of one
and computes as if there were no such thing.

Only the leader opens weights. The others have outlines of the models, whose parameters take no memory, until they get
their parts: so however many processes there are, host memory holds a model once, and no device holds the student whole.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.models.checkpoint import load_model, outline_model
from compress.train.layers import is_sharded, layers_of, models_of
from compress.train.sharding import DIVIDED, Sharding

Value = TypeVar("Value")

CALLED = ("held_out", "whole")
"""Methods of an objective that run its models besides `forward`: weights must be gathered for them, too."""
IN_BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
"""Of a layer's matrices under autocast, which rounds them alike. So rounded they are kept for the backward pass in a
storage that is freed and gathered again; what autocast rounds itself it keeps. Gradients are summed in fp32."""


@dataclass(frozen=True)
class Team:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    is_launched: bool = False
    """Whether torchrun started it, be it with one process: then what it keeps is sharded."""
    num_machines: int = 1
    """How many machines they are on, as many on each; ranks of a machine follow each other."""

    @classmethod
    def current(cls) -> "Team":
        """Return the team this process is in."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        size = dist.get_world_size()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))  # torchrun says so
        return cls(dist.get_rank(), size, is_launched=True, num_machines=max(1, size // here))

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

    def least(self, value: float) -> float:
        """Return the least of the processes' values."""
        if not self.is_launched:
            return value
        least = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return float(least)

    def agree(self, value: Value) -> Value:
        """Return the leader's value: a small object of plain types."""
        if not self.is_launched:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank: small objects of plain types."""
        if not self.is_launched:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

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


def shard(objective: nn.Module, device: str, sharding: Sharding = DIVIDED) -> None:
    """Give every process its part of what the leader holds of the objective's models, layer by layer, on its device.

    The objective's own call gathers what lies outside the student's layers; that part of a teacher stays whole, as does
    a teacher in 8 or 4 bits, which every process has opened: its layers hold more than parameters, and are small.
    """
    mesh = _mesh(device, sharding)
    student: PreTrainedModel = objective.student
    layers = layers_of(student)
    for model in filter(is_sharded, models_of(objective)):
        if model is student or not sharding.whole_teacher:
            _shard_layers(model, mesh, device, sharding)
        _hand_out(model, device)
    # The objective gathers them as if they were its own: once, in fp32.
    objective.vectors = nn.ParameterList(_undivided(layers))
    others = [model for model in models_of(objective) if model is not student]
    kept_whole = set(_undivided(others))
    fully_shard(objective, mesh=mesh, ignored_params=kept_whole)
    for name in filter(partial(hasattr, objective), CALLED):
        register_fsdp_forward_method(objective, name)


def summed_as(sharding: Sharding, objective: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield a step's batches; gradients of each are summed over processes as often as the sharding says."""
    waiting = list(batches)
    for index, batch in enumerate(waiting):
        if isinstance(objective, FSDPModule):
            is_last = index == len(waiting) - 1
            objective.set_requires_gradient_sync(is_last or not sharding.reduces_once)
            objective.set_requires_all_reduce(is_last)  # over replicas: of the sum over those before it
        yield batch


def reshard(objective: nn.Module) -> None:
    """Drop what an evaluation has gathered: only a backward pass would."""
    if isinstance(objective, FSDPModule):
        objective.reshard()


@contextmanager
def passing_together(model: PreTrainedModel) -> Iterator[None]:
    """Let every process run its model as often as it likes inside this block, without gradients.

    Gathering weights takes all processes. Before each pass they tell each other that there is one more; who has done
    its own goes on with passes over a single token until nobody has any left.
    """
    team = Team.current()
    first = next((module for module in model.modules() if isinstance(module, FSDPModule)), None)
    if team.size == 1 or first is None:
        yield
        return

    def announce(*_: Any) -> None:
        team.sums(1)

    assert isinstance(first, nn.Module)
    hook = first.register_forward_pre_hook(announce, prepend=True)  # before FSDP's own, which gathers
    try:
        yield
    finally:
        hook.remove()
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    while team.sums(0) != [0]:
        with torch.inference_mode():
            model.base_model(input_ids=token, use_cache=False)


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


def _mesh(device: str, sharding: Sharding) -> DeviceMesh:
    kind, size, num_replicas = torch.device(device).type, dist.get_world_size(), sharding.num_replicas
    if num_replicas == 1:
        return init_device_mesh(kind, (size,))
    shape = num_replicas, size // num_replicas
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def _shard_layers(model: PreTrainedModel, mesh: DeviceMesh, device: str, sharding: Sharding) -> None:
    """Divide a model's layers, each gathered as one: where that is done in bf16, but for their vectors.

    Under autocast those are used as they are: the weights of norms in fp32. They are small.
    """
    for layer in layers_of(model):
        _hand_out(layer, device)
        if sharding.gathers_bf16:
            vectors = {p for p in layer.parameters() if p.ndim < 2}
            fully_shard(layer, mesh=mesh, mp_policy=IN_BF16, ignored_params=vectors)
        else:
            fully_shard(layer, mesh=mesh)


def _undivided(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of modules that are in no part yet."""
    return [p for module in modules for p in module.parameters() if not isinstance(p, DTensor)]
