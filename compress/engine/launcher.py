"""A step on several processes: the worker starts torchrun, passes on what the leader says, and ends with it.

What passes between them lies in a folder beside the step's partial work, so that processes on other machines, which
share the store, find it too: the job, a file that asks to stop, the leader's events, and how each process ended.
When the worker dies so does torchrun, and with it every process here; when one process dies torchrun ends the
others.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compress import errors
from compress.engine.agent import ALONE
from compress.engine.tasks import Task
from compress.errors import CompressError, InputError, StepFailed
from compress.records import Outcome

if TYPE_CHECKING:
    from compress.engine.worker import WorkerContext

POLL_SECONDS = 0.1
NETWORKS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""The variables that choose a network: gloo else takes the one that the machine's own name leads to."""
REMIND_SECONDS = 60.0
"""How often a run that waits for other machines says so."""


class ProcessDied(StepFailed):
    """One of the processes ended without a word. What torchrun saw of it stands in the step's log."""


class Launch(Protocol):
    """A step's setting `launch`."""

    processes: int
    nodes: int
    rendezvous: str | None


class JobFolder:
    """Where launcher and processes leave each other word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job, self.stop, self.events = path / "job.json", path / "stop", path / "events"

    def result(self, rank: int) -> Path:
        """Return where a process says how it ended."""
        return self.path / f"rank-{rank}.json"

    def results(self) -> list[dict[str, Any]]:
        """Return what processes said so far, in the order they ended."""
        files = sorted(self.path.glob("rank-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def launched(task: Task, context: "WorkerContext", launch: Launch) -> Outcome:
    """Have a step's `run` done by so many processes; return the leader's outcome.

    Raises what a process raised, `ProcessDied` when one died, and `InputError` when there are fewer GPUs.
    """
    _check_devices(launch.processes)
    folder = JobFolder(context.partial / "launch")
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir()
    job = {
        "task": task.model_dump(mode="json"),
        "folder": str(context.folder),
        "partial": str(context.partial),
    }
    folder.job.write_text(json.dumps(job), encoding="utf-8")
    agent = _agent(str(os.getpid()), launch, folder.job)
    process = subprocess.Popen(agent, stdin=subprocess.DEVNULL)
    for event in _events(process, folder, context, _others(launch, folder)):
        if event["event"] == "progress":
            context.progress(event["done"], event["total"], event["unit"], **event["figures"])
        elif event["event"] == "stop takes":
            context.stop_takes(event["seconds"])
        elif event["event"] == "waiting":
            context.waits(event["message"])
        else:
            context.warn(event["message"])
    return _concluded(process.returncode, folder, context)


def _others(launch: Launch, folder: JobFolder) -> str | None:
    """Return what to do so that machines join; ``None`` where this is the only one."""
    if launch.nodes == 1:
        return None
    others = f"{launch.nodes - 1} more machine{'s' if launch.nodes > 2 else ''}"
    command = shlex.join(_agent(ALONE, launch, folder.job))
    networks = f"{' and '.join(NETWORKS)} name the network between them, where a machine has several"
    return f"waiting for {others} to join at {launch.rendezvous} ({networks}); on each start: {command}"


def _agent(parent: str, launch: Launch, job: Path) -> list[str]:
    """Return the command that starts this machine's processes, and ends them with `parent`."""
    return [sys.executable, "-m", "compress.engine.agent", parent, *_torchrun(launch, job)]


def _torchrun(launch: Launch, job: Path) -> list[str]:
    """Return torchrun's arguments."""
    meeting = ["--standalone"]
    if launch.nodes > 1:
        assert launch.rendezvous is not None
        meeting = [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            launch.rendezvous,
            "--rdzv-id",
            job.parent.parent.name,
        ]
    numbers = [
        "--nproc-per-node",
        str(launch.processes),
        "--nnodes",
        str(launch.nodes),
        "--max-restarts",
        "0",
    ]
    return [*numbers, *meeting, "-m", "compress.engine.rank", str(job)]


def _check_devices(processes: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise InputError(
            f"launch.processes: {processes} processes need a GPU each, here are {torch.cuda.device_count()}"
        )


def _events(
    process: "subprocess.Popen[bytes]", folder: JobFolder, context: "WorkerContext", others: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the leader's events until torchrun has ended; ask for a stop where the run is being stopped.

    `others` is said before, at once and then now and again, until all have joined: then the leader opens its events.
    """
    read = 0
    ended = False
    reminded = -math.inf
    while not ended:
        ended = process.poll() is not None
        if others and not folder.events.exists() and time.monotonic() - reminded >= REMIND_SECONDS:
            reminded = time.monotonic()
            yield {"event": "waiting", "message": others}
        if context.stopping:
            folder.stop.touch()
        if folder.events.exists():
            with folder.events.open("rb") as stream:
                stream.seek(read)
                whole = stream.read().rpartition(b"\n")[0]
            read += len(whole) + 1 if whole else 0
            yield from (json.loads(line) for line in whole.splitlines())
        if not ended:
            time.sleep(POLL_SECONDS)


def _concluded(code: int, folder: JobFolder, context: "WorkerContext") -> Outcome:
    results = folder.results()
    for each in results:
        if each["ended"] == "error":
            kind: type[CompressError] = getattr(errors, each["kind"])
            raise kind(each["message"])
    if any(each["ended"] == "stopped" for each in results):
        context.stop()
    leader = next((each for each in results if each["rank"] == 0 and each["ended"] == "done"), None)
    if code != 0 or leader is None:
        raise ProcessDied(
            "one of its processes died, and with it the others; what is checkpointed is kept, run again to go on"
        )
    context.peak_below = sum(each["peak_memory_bytes"] for each in results)
    return Outcome.model_validate(leader["outcome"])
