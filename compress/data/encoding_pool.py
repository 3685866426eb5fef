"""Processes that encode batches beside this one.

One process loads the tokenizer and forks the others, which share its memory: however many there are, a vocabulary is
read and held once. It is started as a program of its own and never forked from here, where threads run. Each of the
others is spoken to through a socket by a thread that waits for it. Starting takes seconds, which this process does
not wait for.

They end with this process, however it ends, and heed no signal: what is to be done about one is for this process to
say.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from queue import SimpleQueue
from select import select

from compress.cores import usable_cores
from compress.data.batch_encoder import EncodedBatch, Numbered
from compress.data.chat import ChatTemplate
from compress.data.encoding_server import HEEDED_BY_OTHERS, State
from compress.environment import available_memory_bytes
from compress.errors import StepFailed

SERVER = "compress.data.encoding_server"
ONE_THREAD = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The processes are as many as there are cores, and a library's threads would not survive the fork."""

PROCESS_BYTES = 200 * 2**20
"""What a process holds of its own, at most: a batch at work, and what it remembers of words."""
MOST_PROCESSES = 64
"""More than one process can feed."""
FEWEST_CORES = 4


def useful_processes() -> int:
    """Return how many processes this machine has cores, and half its free memory room, for; 1 is this one.

    Threads of the tokenizer use two or three cores as well as processes would, without passing texts on.
    """
    if usable_cores() < FEWEST_CORES:
        return 1
    return max(1, min(usable_cores(), MOST_PROCESSES, available_memory_bytes() // 2 // PROCESS_BYTES))


class EncodingPool:
    """So many processes and what is asked of them. Close it."""

    def __init__(self, state: State, num_processes: int, warn: Callable[[str], None]) -> None:
        """`warn` is told where they cannot be started: then it is never ready."""
        self.num_processes = num_processes
        self._warn, self._is_ready = warn, False
        self._news, news = socket.socketpair()
        self._connections: list[Connection] = []
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(num_processes, "encoding")
        self._server: subprocess.Popen[bytes] | None = None
        try:
            with news:
                self._start(state, news)
        except Exception as error:  # tokenizers raises nothing narrower for parts that cannot be pickled
            self._give_up(str(error))

    @property
    def is_ready(self) -> bool:
        """Whether batches can be submitted."""
        if not self._is_ready and self._server is not None and select([self._news], [], [], 0)[0]:
            self._hear()
        return self._is_ready

    def wait_until_ready(self) -> None:
        """Return when batches can be submitted, or it is known that they never can."""
        if not self._is_ready and self._server is not None:
            self._hear()

    def submit(self, batch: list[Numbered], chat: ChatTemplate | None) -> "Future[EncodedBatch]":
        """Have a batch encoded; the result raises what encoding raised, or `StepFailed` where a process died."""
        return self._threads.submit(self._ask, batch, chat)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self._server is not None:
            self._server.kill()  # and so the others, of which it is the parent
            self._server.wait()
            self._server = None
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._news.close()
        self._is_ready = False

    def _start(self, state: State, news: socket.socket) -> None:
        with ExitStack() as theirs, tempfile.TemporaryFile() as file:
            pickle.dump(state, file)
            file.seek(0)
            descriptors = [news.fileno()]
            for _ in range(self.num_processes):
                one, other = socket.socketpair()
                self._connections.append(Connection(one.detach()))
                descriptors.append(theirs.enter_context(other).fileno())
            self._server = _started(descriptors, file.fileno())

    def _hear(self) -> None:
        """Wait for the one word of the server, that all are there, or for its end."""
        if self._news.recv(1):
            for connection in self._connections:
                self._free.put(connection)
            self._is_ready = True
        else:
            self._give_up("their own message is in the log")

    def _give_up(self, why: str) -> None:
        self.close()
        self._warn(f"tokenizing takes one process only: more could not be started: {why}")

    def _ask(self, batch: list[Numbered], chat: ChatTemplate | None) -> EncodedBatch:
        connection = self._free.get()
        try:
            connection.send((batch, chat))
            answer: EncodedBatch | Exception = connection.recv()
        except (EOFError, OSError) as error:
            raise StepFailed(
                "a process that tokenizes has died; the system may have run out of memory"
            ) from error
        finally:
            self._free.put(connection)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _started(descriptors: list[int], state: int) -> subprocess.Popen[bytes]:
    """Start the server, deaf to signals from its first moment: what is blocked here is blocked there."""
    command = [sys.executable, "-m", SERVER, *map(str, (os.getpid(), *descriptors))]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED_BY_OTHERS)
    try:
        return subprocess.Popen(command, stdin=state, pass_fds=descriptors, env={**os.environ, **ONE_THREAD})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
