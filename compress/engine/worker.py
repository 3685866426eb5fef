"""What a worker does: take the key's lock, run one module, commit the result, report.

Events go to the driver as JSON lines: ``progress``, ``warning``, ``waiting``, ``stop takes``, and at the end one of
``done``, ``stopped`` or ``error``. A ``submit`` asks the driver to have another task done, and waits for one line in
reply.
Nothing after the fork may be shared with the next step: the process ends here.
"""

import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import errors, plugins
from compress.engine.children import child_record
from compress.engine.launcher import ProcessDied, launched
from compress.engine.room import disk_full, disk_is_full
from compress.engine.store import Store, folder_bytes
from compress.engine.tasks import Task, child_of
from compress.environment import environment, peak_memory_bytes
from compress.errors import CompressError, DoesNotFit, StepFailed
from compress.records import Artifact, ChildRecord, Measurement, Outcome

PROGRESS_SECONDS = 0.2


class Stopped(BaseException):
    """Raised inside a step that was asked to stop; not an `Exception`, so no step swallows it."""


class WorkerContext:
    """The `plugins.Context` of a running step."""

    def __init__(self, task: Task, store: Store, folder: Path, events: "EventPipe") -> None:
        self.folder = folder
        self.partial = store.partial(task.key)
        self.inputs: Mapping[str, Artifact] = task.inputs
        self.seed = task.seed
        self.warnings: list[str] = []
        self.children: dict[str, ChildRecord] = {}
        self.peak_below = 0
        """The summed peak memory of the processes that did the work instead of this one."""
        self.seconds_waited = 0.0
        """Spent until submitted work was done."""
        self._task = task
        self._store = store
        self._stop_asked = False
        self._cooperative = False
        self._sending = False
        self._waiting = False
        self._events = events
        self._reported = 0.0
        for number in (signal.SIGTERM, signal.SIGUSR1):  # the latter from a cluster that tells every process
            signal.signal(number, self._on_stop)

    @property
    def stopping(self) -> bool:
        self._cooperative = True
        return self._stop_asked

    def stop(self) -> None:
        raise Stopped

    def stop_takes(self, seconds: float) -> None:
        self._send("stop takes", seconds=seconds)

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS or done >= total:
            self._reported = now
            self._send("progress", done=done, total=total, unit=unit, figures=figures)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self._send("warning", message=message)

    def waits(self, message: str) -> None:
        """Say what the step waits for. Nothing is wrong, so it is no warning in the record."""
        self._send("waiting", message=message)

    def submit(
        self,
        use: str,
        settings: Mapping[str, Any],
        parent: Artifact,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        child = child_of(self._task, use, settings, parent, inputs or {})
        self._store.note_child(self._task.key, child.key)
        artifact = self._store.get(child.key)
        if artifact is None:
            started = time.monotonic()
            self._have_done(child)
            self.seconds_waited += time.monotonic() - started
            artifact = self._store.get(child.key)
            assert artifact, f"{child.use} was committed but is not in the store"
        self.children[child.key] = child_record(self._store, child.key, "submitted")
        return artifact

    def _have_done(self, child: Task) -> None:
        """Ask the driver and wait. Raises what the child raised, and `Stopped` at once when asked to stop."""
        self._send("submit", task=child.model_dump(mode="json"))
        self._waiting = True
        try:
            if self._stop_asked:
                raise Stopped
            reply = self._events.reply()
        finally:
            self._waiting = False
        if reply["event"] == "stopped":
            raise Stopped
        if reply["event"] == "failed":
            kind: type[CompressError] = getattr(errors, reply["kind"])
            raise kind(f"{child.use}, which it submitted: {reply['message']}")

    def _send(self, event: str, **fields: Any) -> None:
        """Write a whole line, even when asked to stop meanwhile."""
        self._sending = True
        try:
            self._events.send(event, **fields)
        finally:
            self._sending = False
        if self._stop_asked and not self._cooperative:
            raise Stopped

    def _on_stop(self, *_: object) -> None:
        """A step that looks at `stopping` saves its work first; any other has nothing to save and ends here.

        Nor has one that waits for submitted work, which is asked to stop at the same time.
        """
        self._stop_asked = True
        if not self._sending and (self._waiting or not self._cooperative):
            raise Stopped


class EventPipe:
    """Writes events as JSON lines to a socket's file descriptor, and reads replies from it."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", buffering=1)
        self._replies = os.fdopen(os.dup(descriptor))

    def send(self, event: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")

    def reply(self) -> dict[str, Any]:
        """Wait for the driver's answer; when the driver is gone, it is ``stopped``."""
        line = self._replies.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"event": "stopped"}
        return answer


def work(payload: bytes, events_descriptor: int) -> int:
    """Do the task in `payload`; return the process's exit status."""
    events = EventPipe(events_descriptor)
    task = Task.model_validate_json(payload)
    try:
        _make(task, Store(task.root), events)
    except Stopped:
        events.send("stopped")
    except ProcessDied as error:
        events.send("error", kind=StepFailed.__name__, message=str(error), crash=True)
    except CompressError as error:
        events.send("error", kind=type(error).__name__, message=str(error))
    except Exception as error:
        if not disk_is_full(error):
            return _report_crash(error, events)
        events.send("error", kind=DoesNotFit.__name__, message=disk_full(task.root, error))
    return 0


def _report_crash(error: Exception, events: EventPipe) -> int:
    traceback.print_exc()
    detail = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {detail[0] if detail else 'no message'}"
    events.send("error", kind=StepFailed.__name__, message=message, crash=True)
    return 1


def _make(task: Task, store: Store, events: EventPipe) -> None:
    started = time.monotonic()
    waiting = "it is being made already; waiting until it is there"
    with store.locked(task.key, on_wait=lambda: events.send("waiting", message=waiting)):
        if task.key in store:  # another run of the same work finished while this one waited
            events.send("done", cached=True)
            return
        store.partial(task.key).mkdir(parents=True, exist_ok=True)
        with store.staging(task.key) as folder:
            context = WorkerContext(task, store, folder, events)
            outcome, kind = _call(task, context)
            children = context.children.values()
            alone = time.monotonic() - started - context.seconds_waited
            about = {
                **task.lineage,
                "seconds": alone + sum(child.seconds for child in children),
                "peak_memory_bytes": max(peak_memory_bytes(), context.peak_below),
                "disk_bytes": folder_bytes(folder),
                "warnings": context.warnings,
                "children": [child.model_dump(mode="json") for child in children],
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
    if getattr(config, "launch", None) is not None:
        return launched(task, context, config.launch), module.PRODUCES
    return module.run(task.parent, config, context), module.PRODUCES
