"""How many processes train together, and where those on several machines meet."""

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from compress.accelerators import cards_to_compute_on
from compress.plugins import StepConfig

PLACE = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
"""``host:port``; an IPv6 address stands in brackets."""


class Launch(StepConfig):
    """How many processes train together, each with a part of the models (FSDP2, started by torchrun)."""

    processes: int = Field(default=1, ge=1)
    """Processes on each machine: one a GPU, where there are GPUs."""
    nodes: int = Field(default=1, ge=1)
    """Machines. They share the store's folder; the run says what to start on the others."""
    rendezvous: str | None = None
    """Where the machines meet: ``host:port`` of the one that the run is started on. Needed for several."""

    @field_validator("rendezvous")
    @classmethod
    def _is_a_place(cls, written: str | None) -> str | None:
        found = PLACE.fullmatch(written) if written is not None else None
        if written is not None and (found is None or not 0 < int(found[2]) < 2**16):
            raise ValueError(
                f"expected host:port of the machine the run starts on, such as first-machine:29400, found '{written}'"
            )
        return written

    @model_validator(mode="after")
    def _several_machines_meet(self) -> Self:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                "several 'nodes' need a 'rendezvous': host:port of the machine the run starts on"
            )
        return self


def rehearsed_launch(launch: Launch) -> Launch:
    """Return the smallest launch that has what can go wrong: two processes, here; one, where there is one card."""
    cards = len(cards_to_compute_on())
    return Launch(processes=min(2, launch.processes * launch.nodes, cards or 2))
