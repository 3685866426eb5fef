"""How a team divides its models: what each process holds whole, and how often gradients are summed over all.

Sharding trades traffic for memory. Where there is room it is spent on what saves most traffic for its bytes: a replica
of everything on each of several machines (HSDP: weights are gathered inside the machine, and gradients cross the
network once a step), then a whole teacher, which is never gathered, then a step's gradients kept whole and summed over
all once, at its end. What there is room for is reckoned before anything is divided, by what models and settings say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from compress.records import JsonValue
from compress.train.cost import activation_bytes_per_token

STATE_BYTES = 16
"""A trained parameter with gradient and AdamW's two moments, in fp32."""
HEAD_BYTES = 2 * 2**30
"""A group of logits with its gradient, the teacher's beside it, and the tensors of a tile (`compress.train.fused`)."""
CONTEXT_BYTES = 2**30
"""Buffers of the processes' communication, and kernels."""


@dataclass(frozen=True)
class Sharding:
    """How models are divided among the processes of a team."""

    gathers_bf16: bool = False
    """Whether matrices of layers are gathered in bf16, which they are multiplied in anyway; else in fp32."""
    num_replicas: int = 1
    """Over how many machines everything is replicated, divided only inside each."""
    whole_teacher: bool = False
    reduces_once: bool = False
    """Whether a step's gradients are summed over processes after its last micro-batch only, and kept whole until then;
    else after each."""

    def facts(self) -> dict[str, JsonValue]:
        """Return what the record keeps."""
        facts: dict[str, JsonValue] = {
            "gathered_in": "bf16" if self.gathers_bf16 else "fp32",
            "replicas": self.num_replicas,
            "gradients_summed": "once a step" if self.reduces_once else "after each micro-batch",
        }
        return facts | ({"teacher": "whole"} if self.whole_teacher else {})


DIVIDED = Sharding()
"""Among all processes, in fp32: as a processor's team in fp32 does."""


@dataclass(frozen=True)
class Sizes:
    """What an objective's models hold, in elements for the student and bytes for the teacher."""

    trained: int
    frozen: int
    outside: int
    """Of the student's, those outside its layers (embeddings, head): gathered throughout, with their gradients."""
    largest_layer: int
    teacher_bytes: int = 0
    teacher_outside_bytes: int = 0
    """Of the teacher's, those outside its layers: never divided."""

    @classmethod
    def of(cls, objective: nn.Module) -> "Sizes":
        """Return the sizes of an objective's models, be they opened or outlined."""
        student: PreTrainedModel = objective.student
        teachers = [model for model in models_of(objective) if model is not student and is_sharded(model)]
        inside = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(student)]
        parameters = list(student.parameters())
        return cls(
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            frozen=sum(p.numel() for p in parameters if not p.requires_grad),
            outside=sum(p.numel() for p in parameters) - sum(inside),
            largest_layer=max(inside, default=0),
            teacher_bytes=sum(map(_num_bytes, teachers)),
            teacher_outside_bytes=sum(
                _num_bytes(model) - sum(map(_num_bytes, layers_of(model))) for model in teachers
            ),
        )


def held_bytes(sizes: Sizes, sharding: Sharding, num_processes: int) -> int:
    """Return what a process holds of models, gradients and optimizer at most, activations apart."""
    num_shards = num_processes // sharding.num_replicas
    width = 2 if sharding.gathers_bf16 else 4
    held = (STATE_BYTES * sizes.trained + 4 * sizes.frozen) // num_shards
    held += 8 * sizes.outside  # gathered, and their gradients
    held += 2 * sizes.outside if sharding.gathers_bf16 else 0  # of which the head is copied
    held += (
        2 * width + 4
    ) * sizes.largest_layer  # one in use, the next on its way, a gradient summed in fp32
    if sharding.reduces_once:
        held += 4 * (
            sizes.trained if sizes.frozen else sizes.trained - sizes.outside
        )  # adapters are in layers
    inside = sizes.teacher_bytes - sizes.teacher_outside_bytes
    return held + sizes.teacher_outside_bytes + (inside if sharding.whole_teacher else inside // num_shards)


def working_bytes(student: PreTrainedModel, tokens: int, recompute: bool) -> int:
    """Return about what a forward and a backward pass of so many tokens take beside what is held."""
    config = student.config.to_dict()
    kept = tokens * activation_bytes_per_token(config)
    layers = max(1, len(layers_of(student)))
    if recompute:  # the inputs of layers, in fp32, and all of one layer
        kept = tokens * 4 * layers * int(student.config.hidden_size) + kept // layers
    return kept + HEAD_BYTES + CONTEXT_BYTES


def candidates(gathers_bf16: bool, num_machines: int, has_teacher: bool) -> list[Sharding]:
    """Return the ways to divide, those that take least traffic first."""
    found = []
    for num_replicas in sorted({num_machines, 1}, reverse=True):
        divided = Sharding(gathers_bf16, num_replicas)
        whole = [replace(divided, whole_teacher=True)] if has_teacher else []
        found += [replace(each, reduces_once=True) for each in (whole or [divided])]
        found += [*whole, divided]
    return found


def roomiest(sizes: Sizes, ways: Sequence[Sharding], num_processes: int, available: float) -> Sharding:
    """Return the first of the ways that fits into so many bytes, the last where none does."""
    fitting = (way for way in ways if held_bytes(sizes, way, num_processes) <= available)
    return next(fitting, ways[-1])


def models_of(objective: nn.Module) -> list[PreTrainedModel]:
    """Return the models an objective holds."""
    return [child for child in objective.children() if isinstance(child, PreTrainedModel)]


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return a model's layers: what is gathered together."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a model can be divided: one in 8 or 4 bits holds more than parameters, and is small."""
    return all(parameter.is_floating_point() for parameter in model.parameters())


def _num_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
