"""The driver's side of workers: start the fork server when first needed, hand it tasks, listen, stop them.

Signals: Ctrl-C, SIGTERM, SIGUSR1 (a cluster's warning that time is nearly up) and SIGHUP (the terminal is gone) are the
driver's matter. It asks its workers to stop (SIGTERM), gives them the time they need to save, and kills them if they do
not; the same signal again, or Ctrl-C after any, kills at once. A cluster that sends its signal to every process does no
harm: a worker takes it as the driver's, and the fork server ignores it.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from compress import errors
from compress.engine.tasks import Task
from compress.engine.variables import with_variables
from compress.errors import CompressError, Interrupted, Preempted, StepFailed

PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "safetensors.torch",
    "compress.measure.evaluation",
    "compress.models.checkpoint",
    "compress.backends.opening",
    "compress.engine.worker",
)
"""What every worker finds imported. None of these may run a tensor operation when imported."""

GRACE_SECONDS = 20.0
"""How long a worker that is asked to stop may take, unless it has said that it needs longer."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
OnEvent = Callable[[dict[str, Any]], None]
OnSubmit = Callable[[Task, int], None]
"""Has a task done that a worker (its process id) submitted and waits for; raises what the task raised."""


class Workers:
    """Runs tasks, each in a process of its own. Several threads may call `run` at once."""

    def __init__(self, threads: int | None = None, grace: float | None = None) -> None:
        """`threads` limits the processor threads of every worker; ``None`` leaves them all.

        `grace`: seconds that a worker may take to stop; left out, as long as it says it needs, at least 20.
        """
        # Threads that wait for each other spin for long by default: where other programs share the cores that made
        # two-thread training 2 to 3 times slower (2,600 against 6,300 tokens/s). It changes waiting, not results.
        self._environment = {"GOMP_SPINCOUNT": "1000", **with_variables(os.environ)}
        if threads:
            self._environment["OMP_NUM_THREADS"] = str(threads)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = threading.Lock()
        self._news = threading.Condition()
        self._started: deque[int] = deque()
        self._statuses: dict[int, int] = {}
        self._server_ended = False
        self._pids: set[int] = set()
        self._asked_grace = grace
        self._grace: dict[int, float] = {}
        self._signal: int | None = None
        self._stopped_at: float | None = None

    def run(
        self,
        task: Task,
        log: Path,
        on_event: OnEvent,
        on_submit: OnSubmit | None = None,
        submitter: int | None = None,
    ) -> None:
        """Do a task; return when it is committed. When the worker `submitter` ends before, it is stopped.

        Raises what the step raised, `StepFailed` when its process died, `Interrupted` or `Preempted` when stopped.
        """
        self._raise_if_signalled()
        if self._stopped_at is not None:
            raise Preempted("the run is being stopped")
        ours, theirs = socket.socketpair()
        with ours, theirs, log.open("ab") as log_stream:
            pid = self._start(task, theirs, log_stream.fileno())
            theirs.close()
            last = self._listen(ours, pid, on_event, on_submit, submitter)
            with self._news:
                self._news.wait_for(lambda: pid in self._statuses or self._server_ended)
                status = self._statuses.pop(pid, signal.SIGKILL)
                self._pids.discard(pid)
                self._grace.pop(pid, None)
        self._conclude(last, status, log)

    def stop(self) -> None:
        """Ask every running worker to stop."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._forward(signal.SIGTERM)

    def close(self) -> None:
        """End the fork server (and with it any worker)."""
        if self._control:
            self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        if self._server:
            self._server.wait()
            self._server = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT, SIGTERM, SIGUSR1 and SIGHUP into a clean stop of the running workers; ``nohup`` is respected."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self, task: Task, events: socket.socket, log: int) -> int:
        """Have the server fork a worker for a task; return its process id."""
        payload = task.model_dump_json().encode()
        with self._starting:
            control = self._start_server()
            socket.send_fds(control, [str(len(payload)).encode().ljust(16)], [events.fileno(), log])
            control.sendall(payload)
            with self._news:
                self._news.wait_for(lambda: self._started or self._server_ended)
                if not self._started:
                    raise StepFailed("the worker process could not be started; its message is above")
                pid = self._started.popleft()
                self._pids.add(pid)
        if self._stopped_at is not None:
            self._send_signal(pid, signal.SIGTERM)
        return pid

    def _start_server(self) -> socket.socket:
        if self._control is None:
            ours, theirs = socket.socketpair()
            module = "compress.engine.forkserver"
            command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid()), *PRELOAD]
            self._server = subprocess.Popen(
                command,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            theirs.close()
            self._control = ours
            threading.Thread(target=self._receive, args=(ours,), daemon=True).start()
        return self._control

    def _receive(self, control: socket.socket) -> None:
        """Sort what the server says: a worker has started, or ended with a status."""
        with control.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                message: dict[str, int] = json.loads(line)
                with self._news:
                    if "status" in message:
                        self._statuses[message["pid"]] = message["status"]
                    else:
                        self._started.append(message["pid"])
                    self._news.notify_all()
        with self._news:
            self._server_ended = True
            self._news.notify_all()

    def _listen(
        self,
        events: socket.socket,
        pid: int,
        on_event: OnEvent,
        on_submit: OnSubmit | None,
        submitter: int | None,
    ) -> dict[str, Any] | None:
        """Pass events on, and have done what is submitted, until the worker closes its end; return the last event."""
        buffer = bytearray()
        last = None
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                self._kill_if_overdue(pid)
                if submitter in self._statuses:
                    submitter = None
                    self._send_signal(pid, signal.SIGTERM)
                if not selector.select(timeout=0.25):
                    continue
                received = events.recv(65536)
                if not received:
                    return last
                buffer += received
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    told = json.loads(line)
                    if told["event"] == "stop takes":
                        self._grace[pid] = told["seconds"]
                        continue
                    last = told
                    if last["event"] == "submit":
                        assert on_submit, "submitted work submits nothing itself"
                        _answer(events, on_submit, Task.model_validate(last["task"]), pid)
                    else:
                        on_event(last)

    def _conclude(self, last: dict[str, Any] | None, status: int, log: Path) -> None:
        event = last["event"] if last else None
        if event == "done":
            return
        if last and event == "error":
            where = f"\nThe full story is in {log}" if last.get("crash") else ""
            kind: type[CompressError] = getattr(errors, last["kind"])
            raise kind(last["message"] + where)
        self._raise_if_signalled()
        if event == "stopped":
            raise Preempted("the worker was told to stop (SIGTERM)")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            hint = "; the system may have run out of memory" if number == signal.SIGKILL else ""
            raise StepFailed(f"its process was killed by {signal.Signals(number).name}{hint}. Log: {log}")
        raise StepFailed(f"its process ended with status {os.waitstatus_to_exitcode(status)}. Log: {log}")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A cluster warns with one signal and ends with another: what is being saved goes on.
        repeated = self._signal is not None and number in (self._signal, signal.SIGINT)
        self._signal = number
        self.stop()
        if repeated:
            self._forward(signal.SIGKILL)

    def _forward(self, number: int) -> None:
        for pid in tuple(self._pids):
            self._send_signal(pid, number)

    def _send_signal(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _kill_if_overdue(self, pid: int) -> None:
        grace = self._asked_grace
        if grace is None:
            grace = max(GRACE_SECONDS, self._grace.get(pid, 0.0))
        if self._stopped_at is not None and time.monotonic() - self._stopped_at > grace:
            self._send_signal(pid, signal.SIGKILL)

    def _raise_if_signalled(self) -> None:
        if self._signal == signal.SIGINT:
            raise Interrupted("stopped by Ctrl-C")
        if self._signal is not None:
            raise Preempted(f"stopped by {signal.Signals(self._signal).name}")


def _answer(events: socket.socket, on_submit: OnSubmit, task: Task, submitter: int) -> None:
    """Have done what a worker submitted, then tell it how that went. One that has ended meanwhile need not know."""
    reply = {"event": "done"}
    try:
        on_submit(task, submitter)
    except (Interrupted, Preempted):
        reply = {"event": "stopped"}
    except CompressError as error:
        reply = {"event": "failed", "kind": type(error).__name__, "message": str(error)}
    with suppress(ConnectionError):
        events.sendall(json.dumps(reply).encode() + b"\n")
