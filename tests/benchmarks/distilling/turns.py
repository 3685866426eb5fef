"""Processes that take a step each in turn, so that what slows the machine for a while slows all of them alike."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

WARM_UP = 2


def take_turns(script: str, methods: Sequence[str], vocabulary: int, count: int) -> dict[str, dict[str, Any]]:
    """Return each method's seconds of every turn and its process's peak memory.

    All are started first, and one after the other begins a turn. `script` is called with ``--job step`` and a method.
    """
    processes = {
        method: subprocess.Popen(
            [sys.executable, script, "--job", "step", str(vocabulary), method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for method in methods
    }
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    peaks: dict[str, int] = {}
    try:
        for turn in range(-WARM_UP, count):
            first = turn % len(methods)
            for method in (*methods[first:], *methods[:first]):
                found = _step(processes[method])
                peaks[method] = found["peak_bytes"]
                if turn >= 0:
                    seconds[method].append(found["seconds"])
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {method: {"seconds": seconds[method], "peak_bytes": peaks[method]} for method in methods}


def _step(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):  # libraries print, too
            found: dict[str, Any] = json.loads(line)
            return found
    raise RuntimeError(f"{process.args} ended with exit code {process.wait()}")
