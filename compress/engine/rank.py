"""One of the processes that do a step together, as torchrun starts it: ``python -m compress.engine.rank JOB``.

All call the step's `run`; only the leader writes the result and speaks. A signal that would end it asks all to save and
stop; it is heard even while this process waits for the others.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from compress import plugins
from compress.engine.agent import PID, STOPS
from compress.engine.launcher import JobFolder
from compress.engine.room import disk_full, disk_is_full
from compress.engine.tasks import Task
from compress.environment import peak_memory_bytes
from compress.errors import CompressError, DoesNotFit, StepFailed
from compress.processes import die_with_parent
from compress.records import Artifact

FAILED = ("error", "alone")
PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: the leader measures or writes alone at times."""


class Stopped(BaseException):
    """Raised inside a step that was asked to stop."""


class RankContext:
    """The `plugins.Context` of one process among several."""

    def __init__(
        self,
        task: Task,
        job: JobFolder,
        folder: Path,
        partial: Path,
        leads: bool,
        told: threading.Event | None = None,
    ) -> None:
        """`told`: set when this process was told to stop."""
        self.folder, self.partial = folder, partial
        self.inputs: Mapping[str, Artifact] = task.inputs
        self.seed = task.seed
        self._job, self._leads = job, leads
        self._told = told or threading.Event()
        self._looks = leads or os.environ.get("LOCAL_RANK") == "0"
        self._said: set[str] = set()
        self._events = job.events.open("a", encoding="utf-8") if leads else None

    @property
    def stopping(self) -> bool:
        # A file is seen at once on the machine that made it, and may be late on others: one process of each looks.
        return self._told.is_set() or (self._looks and self._job.stop.exists())

    def stop(self) -> None:
        raise Stopped

    def stop_takes(self, seconds: float) -> None:
        self._send(event="stop takes", seconds=seconds)

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        self._send(event="progress", done=done, total=total, unit=unit, figures=figures)

    def warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._send(event="warning", message=message)

    def submit(
        self,
        use: str,
        settings: Mapping[str, Any],
        parent: Artifact,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        raise AssertionError(f"a step on several processes submits nothing, and it asked for {use}")

    def _send(self, **event: Any) -> None:
        if self._events is not None:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()


def main(job_path: Path, told: threading.Event) -> int:
    """Join the others, do the step, say how it ended; return the exit status. `told`: set to stop."""
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    folder = JobFolder(job_path.parent)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as own:
        result_folder = Path(job["folder"]) if rank == 0 else Path(own)
        task = Task.model_validate(job["task"])
        context = RankContext(task, folder, result_folder, Path(job["partial"]), rank == 0, told)
        result = _done(task, context)
    _leave(folder.result(rank), {"rank": rank, "peak_memory_bytes": peak_memory_bytes(), **result})
    if result["ended"] in FAILED:
        return 1
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _done(task: Task, context: RankContext) -> dict[str, Any]:
    module: Any = plugins.internal(task.use)
    try:
        outcome = module.run(task.parent, module.Config.model_validate(task.settings), context)
    except Stopped:
        return {"ended": "stopped"}
    except CompressError as error:
        return {"ended": "error", "kind": type(error).__name__, "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        if _lost_another(error):
            return {"ended": "alone"}
        if disk_is_full(error):
            return {"ended": "error", "kind": DoesNotFit.__name__, "message": disk_full(task.root, error)}
        first = (str(error).strip().splitlines() or ["no message"])[0]
        message = f"{type(error).__name__}: {first}"
        return {"ended": "error", "kind": StepFailed.__name__, "message": message}
    return {"ended": "done", "outcome": outcome.model_dump(mode="json")}


def _lost_another(error: Exception) -> bool:
    """Whether this is how the death of another process looks from here."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "by peer" in str(error)


def _leave(path: Path, result: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(path)


def listen(job: JobFolder, told: threading.Event) -> None:
    """Have signals set `told` from here on, in a thread: the main one may be waiting for the others in torch.

    torchrun sends one, too, once a process has failed. Then there is nobody to stop with.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # before other threads are started: theirs is this

    def heed() -> None:
        while True:
            number = signal.sigwait(STOPS)
            if number == signal.SIGINT:
                continue  # the terminal's: whoever started this has it, too
            if any(each["ended"] in FAILED for each in job.results()):
                os._exit(128 + number)
            told.set()
            with suppress(OSError):
                job.stop.touch()

    threading.Thread(target=heed, daemon=True).start()


def _end(status: int) -> NoReturn:
    """End now. After a failure the others are not there to be taken leave of, and torch would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PID) or os.getppid()))  # on another machine a person started torchrun
    job_file, told_to_stop = Path(sys.argv[1]), threading.Event()
    listen(JobFolder(job_file.parent), told_to_stop)
    _end(main(job_file, told_to_stop))
