"""One of the processes that do a step together, as torchrun starts it: ``python -m compress.engine.rank JOB``.

All call the step's `run`; only the leader writes the result and speaks.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from compress import plugins
from compress.engine.agent import PID
from compress.engine.forkserver import die_with_parent
from compress.engine.launcher import JobFolder
from compress.engine.room import disk_full, disk_is_full
from compress.engine.tasks import Task
from compress.environment import peak_memory_bytes
from compress.errors import CompressError, DoesNotFit, StepFailed
from compress.records import Artifact

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: the leader measures or writes alone at times."""


class Stopped(BaseException):
    """Raised inside a step that was asked to stop."""


class RankContext:
    """The `plugins.Context` of one process among several."""

    def __init__(self, task: Task, job: JobFolder, folder: Path, partial: Path, leads: bool) -> None:
        self.folder, self.partial = folder, partial
        self.inputs: Mapping[str, Artifact] = task.inputs
        self.seed = task.seed
        self._job, self._leads = job, leads
        self._said: set[str] = set()
        self._events = job.events.open("a", encoding="utf-8") if leads else None

    @property
    def stopping(self) -> bool:
        return self._job.stop.exists()

    def stop(self) -> None:
        raise Stopped

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


def main(job_path: Path) -> int:
    """Join the others, do the step, say how it ended; return the exit status."""
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
        context = RankContext(task, folder, result_folder, Path(job["partial"]), leads=rank == 0)
        result = _done(task, context)
    _leave(folder.result(rank), {"rank": rank, "peak_memory_bytes": peak_memory_bytes(), **result})
    if result["ended"] in ("error", "alone"):
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


if __name__ == "__main__":
    die_with_parent(int(os.environ.get(PID) or os.getppid()))  # on another machine a person started torchrun
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(Path(sys.argv[1])))
