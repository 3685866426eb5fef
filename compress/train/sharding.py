"""How a team divides its models: what each process holds whole, and how often gradients are summed over all.

Sharding trades traffic for memory. Where there is room it is spent on what saves most traffic for its bytes: a replica
of everything on each of several machines (HSDP: weights are gathered inside the machine, and gradients cross the
network once a step), then a whole teacher, which is never gathered, then a step's gradients kept whole and summed over
all once, at its end. What there is room for is reckoned before anything is divided (`compress.train.memory_account`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compress.records import JsonValue


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


def candidates(gathers_bf16: bool, num_machines: int, has_teacher: bool) -> list[Sharding]:
    """Return the ways to divide, those that take least traffic first."""
    found = []
    for num_replicas in sorted({num_machines, 1}, reverse=True):
        divided = Sharding(gathers_bf16, num_replicas)
        whole = [replace(divided, whole_teacher=True)] if has_teacher else []
        found += [replace(each, reduces_once=True) for each in (whole or [divided])]
        found += [*whole, divided]
    return found


def roomiest(ways: Sequence[Sharding], fits: Callable[[Sharding], bool]) -> Sharding:
    """Return the first of the ways that fits, the last where none does."""
    return next(filter(fits, ways), ways[-1])
