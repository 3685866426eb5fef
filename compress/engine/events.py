"""What happens during a run, told three ways: a live table on a terminal, plain lines elsewhere, and a file.

An event is a small dict: ``event`` is ``plan``, ``cached``, ``start``, ``progress``, ``warning``, ``waiting``,
``done``, ``failed`` or ``finish``; ``node`` names the plan's node it is about. ``child start``, ``child done`` and
``child failed`` tell of work a running node submitted; its events carry the name of the ``child`` beside the node's.
"""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Event = dict[str, Any]
Listener = Callable[[Event], None]

PLAIN_SECONDS = 5.0


def to_file(stream: TextIO) -> Listener:
    """Append every event to a file, one JSON line each.

    Past the stream's buffer: on a full disk it would keep the line, and fail again when it is closed.
    """

    def listen(event: Event) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, default=str) + "\n"
        os.write(stream.fileno(), line.encode())

    return listen


class PlainLines:
    """A line when a step starts, every few seconds while it works, and when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        kind, node = event["event"], event.get("node", "")
        if kind == "start":
            self._last = time.monotonic()
            self._say(f"{node}: {event['use']}")
        elif kind == "progress" and time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._say(f"{node}: {describe_progress(event)}")
        elif kind in ("warning", "waiting"):
            self._say(f"{whose(event)}: {kind}: {event['message']}")
        elif kind == "child done":
            self._say(f"{whose(event)}: done in {duration(event['seconds'])}")
        elif kind == "child failed":
            self._say(f"{whose(event)}: failed: {event['message']}")
        elif kind == "done":
            self._say(f"{node}: done in {event['seconds']:.1f} s")
        elif kind == "plan" and event["num_cached"]:
            self._say(f"{event['num_cached']} of {event['num_nodes']} results are already in the store")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def while_it_is_there(listener: Listener) -> Listener:
    """Stop telling once the terminal, or who read the lines, is gone: what works must be ended well all the same."""
    gone = False

    def listen(event: Event) -> None:
        nonlocal gone
        if gone:
            return
        try:
            listener(event)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            gone = True

    return listen


def whose(event: Event) -> str:
    """Return what an event is about: a node, or a node's child."""
    return f"{event['node']}: {event['child']}" if "child" in event else str(event["node"])


def describe_progress(event: Event) -> str:
    """Return progress as a person reads it: ``41 % of 600,000 tokens, loss 2.31, 9,800 tokens/s, 35 s left``.

    That of a child begins with its name: ``width-3f2a90c1: 41 % of …``.
    """
    done, total, unit = event["done"], event["total"], event["unit"]
    parts = [f"{100 * done / total:.0f} % of {total:,.0f} {unit}" if total else f"{done:,.0f} {unit}"]
    figures = dict(event.get("figures", {}))
    rate = figures.pop("tokens_per_second", None)
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()]
    if rate:
        parts.append(f"{rate:,.0f} tokens/s")
    if "seconds_left" in event:
        parts.append(f"{duration(event['seconds_left'])} left")
    return (f"{event['child']}: " if "child" in event else "") + ", ".join(parts)


def duration(seconds: float) -> str:
    """Return ``0.4 s``, ``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Clock:
    """Adds the remaining time to progress events, from the pace of this run (a resumed step starts part-way)."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def timed(self, event: Event) -> Event:
        if event["event"] != "progress":
            return event
        now = time.monotonic()
        if self._first is None:
            self._first = (now, event["done"])
            return event
        elapsed, work = now - self._first[0], event["done"] - self._first[1]
        if elapsed > 1 and work > 0:
            return {**event, "seconds_left": (event["total"] - event["done"]) * elapsed / work}
        return event


def log_path(folder: Path, node: str) -> Path:
    """Return where a node's own output is kept inside a run's folder."""
    path = folder / "logs" / f"{node.replace('/', '.')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
