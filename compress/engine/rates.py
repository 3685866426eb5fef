"""How long a plan's nodes take: from what they are estimated to do, and from what this machine took before.

`compress.speed` says how long an amount of work takes on a machine that nobody has timed. Each module's runs here
correct it: long ones by a factor, short ones by what they take beside the work (imports, opening, closing). A busy
machine only makes them longer. So what is believed is a low quantile, in which later runs weigh more and the estimate
itself counts as the first: one slow run of seconds changes nothing, two do, and so does one of a minute. What is
learned on one machine says nothing of another (`compress plan --device`).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from compress.environment import hardware_fingerprint
from compress.machine import planned_machine, this_machine
from compress.pipeline.plan import Node
from compress.speed import is_nothing, seconds_of, start_seconds

REMEMBERED = 7
LONG = 2.0
"""A run tells of speed when its work is estimated to take so many times as long as its start, else of the start."""
BELIEVED = 1 / 3
"""The share of all samples, by weight, that what is believed is not below."""
SURE_SECONDS = 60.0
"""A run this long counts as two."""

WORKER_BYTES = 400 << 20
"""Resident memory of a worker that has only imported its packages: 380 to 400 MB measured with the tested versions."""


def estimated_memory_bytes(node: Node) -> int | None:
    """Return the peak a node's worker will reach, what it imports included; ``None`` without an estimate.

    Of work on several machines, that on each. An account has the process among its items; of work on a card, that is
    what the machine holds beside it.
    """
    work = node.work
    if planned_machine().card is not None and not work.on_processor:
        return work.host_memory_bytes or None
    return work.peak_memory_bytes + (0 if work.memory else WORKER_BYTES) if work.peak_memory_bytes else None


class Learned(TypedDict):
    """What the last runs of a module here told, the oldest first."""

    factors: list[float]
    """Of long runs: seconds beside the start, by those estimated."""
    starts: list[float]
    """Of short ones: seconds beside those estimated."""


class Rates:
    """What this machine took for each module, on top of the estimates."""

    def __init__(self, root: Path) -> None:
        self._path = root / "rates.json"
        self._learned: dict[str, Learned] = _read(self._path)

    def seconds(self, node: Node) -> float | None:
        """Return how long a node will take on the machine planned for, ``None`` where there is nothing to go by."""
        known = self._learned.get(_name(node)) if planned_machine() == this_machine() else None
        if is_nothing(node.work):
            return _believed(known["starts"]) if known and known["starts"] else None
        return self._start(node, known) + self._factor(known) * seconds_of(node.work)

    def learn(self, node: Node, seconds: float) -> None:
        """Remember what a node took on this machine."""
        learned = self._learned.setdefault(_name(node), Learned(factors=[], starts=[]))
        work, start = seconds_of(node.work, this_machine()), self._start(node, learned)
        if not is_nothing(node.work) and work >= LONG * start:
            factor = max(seconds - start, 0.1 * seconds) / work
            learned["factors"] = _with(learned["factors"], factor, times=2 if seconds >= SURE_SECONDS else 1)
        else:
            learned["starts"] = _with(learned["starts"], max(seconds - self._factor(learned) * work, 0.0))
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._learned))
        temporary.replace(self._path)

    def _start(self, node: Node, known: Learned | None) -> float:
        """Return the seconds beside the work."""
        assumed = start_seconds(node.work, planned_machine())
        return _believed([assumed, *known["starts"]]) if known else assumed

    def _factor(self, known: Learned | None) -> float:
        return _believed([1.0, *known["factors"]]) if known else 1.0


def _name(node: Node) -> str:
    return f"{node.use} on {hardware_fingerprint()}"


def _with(samples: Sequence[float], sample: float, times: int = 1) -> list[float]:
    return [*samples, *[sample] * times][-REMEMBERED:]


def _believed(samples: Sequence[float]) -> float:
    """Return the sample that a share of all weight is not above; the first weighs 1, each later one 1 more."""
    total = len(samples) * (len(samples) + 1) / 2
    below = 0.0
    for sample, weight in sorted(zip(samples, range(1, len(samples) + 1), strict=True)):
        below += weight
        if below >= BELIEVED * total:
            return sample
    raise AssertionError("no samples")


def _read(path: Path) -> dict[str, Learned]:
    """Return what was learned. Older versions kept plain lists of FLOP/s, which are no longer used."""
    kept: dict[str, Learned] = json.loads(path.read_text()) if path.exists() else {}
    return {name: learned for name, learned in kept.items() if isinstance(learned, dict)}
