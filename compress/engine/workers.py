"""The driver's side of workers: start the fork server when first needed, hand it tasks, listen, stop them.

Signals: Ctrl-C and SIGTERM reach the driver alone. It asks the worker to stop (SIGTERM), gives it time to save, and
kills it if it does not; a second signal kills at once.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from compress import errors
from compress.engine.tasks import Task
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
OnEvent = Callable[[dict[str, Any]], None]


class Workers:
    """Runs tasks one at a time, each in a process of its own."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._inbox = bytearray()
        self._signal: int | None = None
        self._signalled = 0.0
        self._pid: int | None = None

    def run(self, task: Task, log: Path, on_event: OnEvent) -> None:
        """Do a task; return when it is committed.

        Raises what the step raised, `StepFailed` when its process died, `Interrupted` or `Preempted` when stopped.
        """
        self._raise_if_signalled()
        control = self._start_server()
        ours, theirs = socket.socketpair()
        with ours, log.open("ab") as log_stream:
            payload = task.model_dump_json().encode()
            header = str(len(payload)).encode().ljust(16)
            socket.send_fds(control, [header], [theirs.fileno(), log_stream.fileno()])
            control.sendall(payload)
            theirs.close()
            self._pid = int(self._message()["pid"])
            if self._signal is not None:
                self._forward(signal.SIGTERM)
            last = self._listen(ours, on_event)
            status = self._exit_status()
        self._conclude(last, status, log)

    def close(self) -> None:
        """End the fork server (and with it any worker)."""
        if self._control:
            self._control.close()
            self._control = None
        if self._server:
            self._server.wait()
            self._server = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a clean stop of the running worker."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start_server(self) -> socket.socket:
        if self._control is None:
            ours, theirs = socket.socketpair()
            module = "compress.engine.forkserver"
            command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid()), *PRELOAD]
            self._server = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
            theirs.close()
            self._control = ours
            self._message()
        return self._control

    def _message(self) -> dict[str, Any]:
        assert self._control is not None
        while b"\n" not in self._inbox:
            received = self._control.recv(4096)
            if not received:
                raise StepFailed("the worker process could not be started; its message is above")
            self._inbox += received
        line, _, rest = self._inbox.partition(b"\n")
        self._inbox = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        return message

    def _listen(self, events: socket.socket, on_event: OnEvent) -> dict[str, Any] | None:
        """Pass events on until the worker closes its end; return the last."""
        buffer = bytearray()
        last = None
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                self._kill_if_overdue()
                if not selector.select(timeout=0.25):
                    on_event({"event": "tick"})
                    continue
                received = events.recv(65536)
                if not received:
                    return last
                buffer += received
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    last = json.loads(line)
                    on_event(last)

    def _exit_status(self) -> int:
        message = self._message()
        assert message["pid"] == self._pid
        self._pid = None
        return int(message["status"])

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
        repeated = self._signal is not None
        self._signal = number
        self._signalled = time.monotonic()
        self._forward(signal.SIGKILL if repeated else signal.SIGTERM)

    def _forward(self, number: int) -> None:
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _kill_if_overdue(self) -> None:
        if self._signal is not None and time.monotonic() - self._signalled > GRACE_SECONDS:
            self._forward(signal.SIGKILL)

    def _raise_if_signalled(self) -> None:
        if self._signal == signal.SIGINT:
            raise Interrupted("stopped by Ctrl-C")
        if self._signal is not None:
            raise Preempted("stopped by SIGTERM")
