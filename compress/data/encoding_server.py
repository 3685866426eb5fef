"""The process that loads an encoder and forks those that encode: `compress.data.encoding_pool` says why.

Run as ``python -m compress.data.encoding_server PARENT_PID NEWS_FD FD...``, with the pickled `State` as its standard
input: a socket for one word when all are there, and a socket for each process to fork.
"""

import os
import pickle
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NoReturn

from compress.errors import StepFailed
from compress.processes import die_with_parent

if TYPE_CHECKING:
    from compress.data.batch_encoder import BatchEncoder

HEEDED_BY_OTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What a terminal and a cluster send to every process. Work ends when the process says so that asked for it."""


@dataclass(frozen=True)
class State:
    """What the process begins with."""

    encoder: "BatchEncoder"
    has_conversations: bool
    """Whether there were any so far."""


def main(parent: int, news: int, descriptors: list[int]) -> int:
    """Fork a process for each descriptor and wait for the first to end, which is to end all; return the exit status."""
    for number in HEEDED_BY_OTHERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED_BY_OTHERS)
    die_with_parent(parent)
    state: State = pickle.load(sys.stdin.buffer)
    if state.has_conversations:  # what renders them takes a second to import, and is held once
        import_module("transformers.utils.chat_template_utils")
    server = os.getpid()
    for descriptor in descriptors:
        if os.fork() == 0:
            _become_worker(server, state.encoder, descriptor, {news, *descriptors})
    with socket.socket(fileno=news) as told:
        told.send(b"\n")
    for descriptor in descriptors:
        os.close(descriptor)
    _, status = os.wait()
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        print(f"a process that tokenizes was killed by {name}", file=sys.stderr, flush=True)
    return 1


def _become_worker(
    server: int, encoder: "BatchEncoder", descriptor: int, all_descriptors: set[int]
) -> NoReturn:
    try:
        die_with_parent(server)
        for other in all_descriptors - {descriptor}:
            os.close(other)
        with Connection(descriptor) as connection:
            while True:
                connection.send_bytes(_answer(encoder, connection.recv_bytes()))
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _answer(encoder: "BatchEncoder", question: bytes) -> bytes:
    """Return a batch encoded, or the error it raised, pickled; the story of the error goes to the log."""
    try:
        return pickle.dumps(encoder.encode(*pickle.loads(question)))
    except Exception as error:
        traceback.print_exc()
        return _packed(error)


def _packed(error: Exception) -> bytes:
    """Return an error pickled, or in other words where it is of those that cannot be read back."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps(StepFailed(f"{type(error).__name__}: {error}"))
    return packed


if __name__ == "__main__":
    from compress.data import encoding_server  # what is pickled is of this module by its name

    sys.exit(encoding_server.main(int(sys.argv[1]), int(sys.argv[2]), [int(each) for each in sys.argv[3:]]))
