"""What a worker does: take the key's lock, run one module, commit the result, report.

Events go to the driver as JSON lines: ``progress``, ``warning``, ``waiting``, and at the end one of ``done``,
``stopped`` or ``error``. Nothing after the fork may be shared with the next step: the process ends here.
"""

import errno
import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import plugins
from compress.engine.store import Store, folder_bytes
from compress.engine.tasks import Task
from compress.environment import environment, peak_memory_bytes
from compress.errors import CompressError, DoesNotFit, StepFailed
from compress.records import Artifact, Measurement, Outcome

PROGRESS_SECONDS = 0.2


class Stopped(BaseException):
    """Raised inside a step that was asked to stop; not an `Exception`, so no step swallows it."""


class WorkerContext:
    """The `plugins.Context` of a running step."""

    def __init__(self, task: Task, folder: Path, partial: Path, events: "EventPipe") -> None:
        self.folder = folder
        self.partial = partial
        self.inputs: Mapping[str, Artifact] = task.inputs
        self.seed = task.seed
        self._stop_asked = False
        self._cooperative = False
        self.warnings: list[str] = []
        self._events = events
        self._reported = 0.0
        signal.signal(signal.SIGTERM, self._on_stop)

    @property
    def stopping(self) -> bool:
        self._cooperative = True
        return self._stop_asked

    def stop(self) -> None:
        raise Stopped

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS or done >= total:
            self._reported = now
            self._events.send("progress", done=done, total=total, unit=unit, figures=figures)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self._events.send("warning", message=message)

    def _on_stop(self, *_: object) -> None:
        """A step that looks at `stopping` saves its work first; any other has nothing to save and ends here."""
        self._stop_asked = True
        if not self._cooperative:
            raise Stopped


class EventPipe:
    """Writes events as JSON lines to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", buffering=1)

    def send(self, event: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")


def work(payload: bytes, events_descriptor: int) -> int:
    """Do the task in `payload`; return the process's exit status."""
    events = EventPipe(events_descriptor)
    task = Task.model_validate_json(payload)
    try:
        _make(task, Store(task.root), events)
    except Stopped:
        events.send("stopped")
    except CompressError as error:
        events.send("error", kind=type(error).__name__, message=str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _report_crash(error, events)
        events.send("error", kind=DoesNotFit.__name__, message=f"no room left on the disk of {task.root}")
    except Exception as error:
        return _report_crash(error, events)
    return 0


def _report_crash(error: Exception, events: EventPipe) -> int:
    traceback.print_exc()
    detail = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {detail[0] if detail else 'no message'}"
    events.send("error", kind=StepFailed.__name__, message=message, crash=True)
    return 1


def _make(task: Task, store: Store, events: EventPipe) -> None:
    started = time.monotonic()
    waiting = "another run is making this; waiting for it"
    with store.locked(task.key, on_wait=lambda: events.send("waiting", message=waiting)):
        if task.key in store:  # another run of the same work finished while this one waited
            events.send("done", cached=True)
            return
        partial = store.partial(task.key)
        partial.mkdir(parents=True, exist_ok=True)
        with store.staging(task.key) as folder:
            context = WorkerContext(task, folder, partial, events)
            outcome, kind = _call(task, context)
            about = {
                **task.lineage,
                "seconds": time.monotonic() - started,
                "peak_memory_bytes": peak_memory_bytes(),
                "disk_bytes": folder_bytes(folder),
                "warnings": context.warnings,
                "environment": environment(),
            }
            store.commit(task.key, folder, kind, outcome, about)
    events.send("done", cached=False)


def _call(task: Task, context: WorkerContext) -> tuple[Outcome, str]:
    module: Any = plugins.internal(task.use)
    config = module.Config.model_validate(task.settings)
    if hasattr(module, "measure"):
        measurements: list[Measurement] = module.measure(task.parent, config, context)
        dumped = [m.model_dump(mode="json") for m in measurements]
        (context.folder / "measurements.json").write_text(json.dumps(dumped, indent=1))
        return Outcome(), "measurements"
    return module.run(task.parent, config, context), module.PRODUCES
