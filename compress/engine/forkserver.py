"""A process that has imported the heavy packages and done nothing else: it forks workers in 0.2 s.

It must stay innocent: a process that ever ran a parallel tensor operation or touched CUDA hangs or breaks its
children, so it only imports. It reads requests from a socket (a `Task` as one JSON line, with two file
descriptors: where events go, and the log), forks, and answers with the child's process id and later its wait status.
When its socket closes, the driver is gone, and it and (through PR_SET_PDEATHSIG) its workers die.

Run as ``python -m compress.engine.forkserver FD DRIVER_PID MODULE...``.
"""

import importlib
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from compress.processes import die_with_parent

IGNORED = (signal.SIGTERM, signal.SIGUSR1)
"""What clusters send to every process. Its workers' work would end with it: the driver says when."""


def main(control: socket.socket, preload: list[str]) -> None:
    """Import `preload`, then serve fork requests until the driver closes the socket."""
    for module in preload:
        importlib.import_module(module)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                if ready.fileobj is control:
                    if not _serve(control):
                        return
                else:
                    os.read(wake_read, 512)
            _reap(control)


def _serve(control: socket.socket) -> bool:
    """Fork one worker. Return False once the driver is gone."""
    header, descriptors, _, _ = socket.recv_fds(control, 16, 2)
    if not header:
        return False
    remaining = int(header)
    payload = bytearray()
    while len(payload) < remaining:
        payload += control.recv(remaining - len(payload))
    server = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # what comes before the child listens waits for it
    child = os.fork()
    if child == 0:
        _become_worker(control, server, descriptors, bytes(payload))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    for descriptor in descriptors:
        os.close(descriptor)
    control.sendall(json.dumps({"pid": child}).encode() + b"\n")
    return True


def _become_worker(control: socket.socket, server: int, descriptors: list[int], payload: bytes) -> NoReturn:
    from compress.engine.worker import work

    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *IGNORED):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        os.setsid()  # the terminal's Ctrl-C goes to the driver alone, which asks the worker to stop
        die_with_parent(server)
        control.close()
        events, log = descriptors
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = work(payload, events)
    finally:
        with suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        control.sendall(json.dumps({"pid": child, "status": status}).encode() + b"\n")


if __name__ == "__main__":
    driver = int(sys.argv[2])
    die_with_parent(driver)
    for number in (signal.SIGINT, *IGNORED):
        signal.signal(number, signal.SIG_IGN)
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:])
