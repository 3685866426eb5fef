"""How fast this machine has been at each kind of work, learned from what it ran: the base of the plan's times."""

import json
import os
from pathlib import Path

from compress.machine import planned_machine
from compress.pipeline.plan import Node

REMEMBERED = 5
SHORT_SECONDS = 5.0
"""Of a shorter run most is start and loading, so it seems slow. What it teaches is a lower bound of the speed."""
ASSUMED_FLOPS_PER_SECOND = {"cpu": 1e11, "gpu": 1.5e14}
"""Before anything was measured: a couple of processor cores, and a data-centre card at a third of its peak."""


WORKER_BYTES = 400 << 20
"""Resident memory of a worker that has only imported its packages: 380 to 400 MB measured with the tested versions."""


def estimated_memory_bytes(node: Node) -> int | None:
    """Return the peak a node's worker will reach, what it imports included; ``None`` without an estimate.

    Of work on several devices, that on each.
    """
    return node.work.peak_memory_bytes + WORKER_BYTES if node.work.peak_memory_bytes else None


class Rates:
    """Medians of the last few FLOP/s of a device (or seconds, for work without an estimate) by module."""

    def __init__(self, root: Path) -> None:
        self._path = root / "rates.json"
        self._samples: dict[str, list[float]] = (
            json.loads(self._path.read_text()) if self._path.exists() else {}
        )

    def seconds(self, node: Node) -> float | None:
        """Return how long a node will take, or ``None`` where there is nothing to go by."""
        if node.work.flops:
            return node.work.flops / node.work.devices / self._flops_per_second(node)
        samples = self._samples.get(self._name(node))
        return _median(samples) if samples else None

    def learn(self, node: Node, seconds: float) -> None:
        """Remember what a node took, unless it was too short to say more than is believed already."""
        figure = node.work.flops / node.work.devices / seconds if node.work.flops else seconds
        if node.work.flops and seconds < SHORT_SECONDS and figure < self._flops_per_second(node):
            return
        samples = self._samples.setdefault(self._name(node), [])
        samples.append(figure)
        del samples[:-REMEMBERED]
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._samples))
        temporary.replace(self._path)

    def _flops_per_second(self, node: Node) -> float:
        samples = self._samples.get(self._name(node))
        return _median(samples) if samples else ASSUMED_FLOPS_PER_SECOND[planned_machine().kind]

    def _name(self, node: Node) -> str:
        card = planned_machine().card
        return f"{node.use} on {card.name if card else 'cpu'}"


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]
