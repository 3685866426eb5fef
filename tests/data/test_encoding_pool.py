"""Encoding by several processes: the same documents in the same order, the same errors, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from compress.data import encode, encoding_pool, pack, packing
from compress.data.encode import Encoder, load_tokenizer
from compress.data.encoding_pool import EncodingPool
from compress.data.sources import demo
from compress.errors import InputError, StepFailed
from tests.data.chats import CHAT, PLAIN, REFUSING
from tests.data.test_packing import GOLDEN, begun, digest, jobs
from tests.fakes import Stopped

__all__ = ["jobs"]

TEXTS = [f"document {number} " * (number % 9) for number in range(300)]
SAID = [text for text in TEXTS if text]


@pytest.fixture
def tokenizer(byte_tokenizer):
    return load_tokenizer(byte_tokenizer.path)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 7)


@pytest.fixture
def in_processes(monkeypatch, small_batches):
    """Packing as of much text on three cores: in processes from the first report on."""
    monkeypatch.setattr(packing, "WAITED_SECONDS", 0.0)
    monkeypatch.setattr(packing, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(pack, "REPORT_EVERY", 50)
    monkeypatch.setattr(encoding_pool, "usable_cores", lambda: 3)
    monkeypatch.setattr(encoding_pool, "FEWEST_CORES", 1)
    start, submit, submitted = EncodingPool.__init__, EncodingPool.submit, []

    def started(self, *given):
        start(self, *given)
        self.wait_until_ready()

    monkeypatch.setattr(EncodingPool, "__init__", started)
    monkeypatch.setattr(
        EncodingPool, "submit", lambda self, *given: submitted.append(given) or submit(self, *given)
    )
    return submitted


def pool_of(encoder, num=2):
    encoder.use_processes(num, pytest.fail)
    encoder._pool.wait_until_ready()
    assert encoder._pool.is_ready
    return encoder._pool


def processes_of(pool):
    """The process ids of a pool: its server's, and of those that encode."""
    server = pool._server.pid
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return [server, *map(int, children)]


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pids, seconds=20):
    end = time.monotonic() + seconds
    while any(map(is_there, pids)):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.02)


def told(documents):
    return [(d.ids.tolist(), d.learned.tolist(), d.num_bytes, d.number) for d in documents]


def test_processes_yield_what_one_does(tokenizer, small_batches):
    documents = [CHAT if number % 5 == 3 else text for number, text in enumerate(TEXTS)]
    alone = Encoder(tokenizer, None, PLAIN)
    expected = told(alone.encode(iter(documents), 40))
    with Encoder(tokenizer, None, PLAIN) as encoder:
        assert len(processes_of(pool_of(encoder))) == 3
        assert told(encoder.encode(iter(documents), 40)) == expected
        assert encoder.used_chat_template
    assert 200 < len(expected) < 300


def test_arrays_come_back_as_they_would_be_made_here(tokenizer):
    with Encoder(tokenizer, None) as encoder:
        pool_of(encoder)
        [document] = encoder.encode(iter(["abc"]))
    assert document.ids.dtype == "int64" and document.learned.dtype == bool


@pytest.mark.parametrize("name", GOLDEN)
def test_packing_in_processes_ends_in_the_bytes_that_it_always_did(name, jobs, tmp_path, in_processes):
    tokenizer, settings = jobs[name]
    context = begun(tmp_path, 0)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert len(in_processes) > 10
    assert digest(context.folder) == GOLDEN[name]
    assert context.warnings == []


@pytest.mark.parametrize("name", GOLDEN)
def test_stopped_while_processes_read_ahead_it_goes_on_with_the_next_document(
    name, jobs, tmp_path, in_processes, monkeypatch
):
    tokenizer, settings = jobs[name]

    class StopsLater(type(begun(tmp_path, "x"))):
        @property
        def stopping(self):
            return len(self.reports) == 4

        @stopping.setter
        def stopping(self, value):
            pass

    context = StopsLater(tmp_path / "try-0", partial=tmp_path / "partial", seed=3)
    with pytest.raises(Stopped):
        pack.run(tokenizer, pack.Config(**settings), context)
    assert in_processes
    context = begun(tmp_path, 1)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN[name]


def failing():
    yield from SAID[:10]
    raise InputError("line 7 is no JSON")


WRONG = {
    "a source": (failing, None, "line 7 is no JSON"),
    "a template": (lambda: iter([*SAID[:10], CHAT]), REFUSING, "roles must alternate"),
    "no template": (lambda: iter([*SAID[:10], CHAT]), None, "has no chat template"),
    "an embedding": (lambda: iter([*SAID[:10], "\x7f"]), None, "the model's vocabulary"),
}


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_document_is_raised_in_its_turn(name, num, tokenizer, small_batches):
    documents, template, message = WRONG[name]
    rows = tokenizer("\x7f")["input_ids"][-1]  # no text but the last has an id as large
    with Encoder(tokenizer, None if "chat" in message or "roles" in message else rows, template) as encoder:
        if num > 1:
            pool_of(encoder, num)
        drawn = encoder.encode(documents())
        assert len(list(islice(drawn, 10))) == 10
        with pytest.raises(InputError, match=message):
            next(drawn)
        assert not encoder.used_chat_template


def test_a_document_that_is_not_needed_fails_nothing(tokenizer, small_batches):
    with Encoder(tokenizer, None) as encoder:
        pool_of(encoder)
        assert len(list(islice(encoder.encode(failing()), 10))) == 10


def test_no_more_is_read_ahead_than_a_few_batches(tokenizer, small_batches):
    num_read = 0

    def counted():
        nonlocal num_read
        for text in demo.documents(demo.Config(), 0):
            num_read += 1
            yield text

    with Encoder(tokenizer, None) as encoder:
        pool_of(encoder)
        for number, _ in enumerate(islice(encoder.encode(counted()), 200)):
            assert num_read <= number + 7 * (2 + encode.AHEAD * 2)


def test_long_documents_make_batches_of_few(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 100)
    drawn = list(Encoder(tokenizer, None)._batches(iter(["a" * 60] * 5 + ["b" * 500] * 2 + ["c"]), 0))
    assert [[number for number, _ in batch] for batch in drawn] == [[1, 2], [3, 4], [5, 6], [7], [8]]


def test_long_documents_are_looked_after_oftener(byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "REPORT_TOKENS", 1000)
    (tmp_path / "book.txt").write_text("\n\n".join(["word " * 300] * 20))
    settings = {"paths": [str(tmp_path / "book.txt")]}
    config = pack.Config(source="text", settings=settings, sequence_length=16)
    with pytest.raises(Stopped):
        pack.run(byte_tokenizer, config, begun(tmp_path, 0, stopping=True))
    context = begun(tmp_path, 1)
    pack.run(byte_tokenizer, config, context)
    assert len(context.reports) == 19


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_for_the_process_that_asked(number, tokenizer):
    with Encoder(tokenizer, None) as encoder:
        pids = processes_of(pool_of(encoder))
        for pid in pids:
            os.kill(pid, number)
        assert len(list(encoder.encode(iter(SAID[:4])))) == 4
        assert all(map(is_there, pids))
    await_end(pids)


def test_a_handler_of_the_process_is_not_inherited(tokenizer):
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Encoder(tokenizer, None) as encoder:
            for pid in processes_of(pool_of(encoder)):
                status = dict(
                    line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                )
                mask = 1 << (signal.SIGTERM - 1)
                assert int(status["SigIgn"], 16) & mask
                assert not int(status["SigCgt"], 16) & mask
                assert not int(status["SigBlk"], 16)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize("which", ["server", "worker"])
def test_a_process_that_dies_is_told_of(which, tokenizer, small_batches):
    with Encoder(tokenizer, None) as encoder:
        pids = processes_of(pool_of(encoder))
        drawn = encoder.encode(demo.documents(demo.Config(), 0))
        next(drawn)
        os.kill(pids[which == "worker"], signal.SIGKILL)
        with pytest.raises(StepFailed, match="a process that tokenizes has died"):
            list(drawn)
    await_end(pids)


def test_left_in_the_midst_nothing_is_left(tokenizer, small_batches):
    with pytest.raises(KeyboardInterrupt), Encoder(tokenizer, None) as encoder:
        pids = processes_of(pool_of(encoder))
        for number, _ in enumerate(encoder.encode(demo.documents(demo.Config(), 0))):
            if number == 50:
                raise KeyboardInterrupt
    await_end(pids)


def test_closed_before_they_are_there_nothing_is_left(tokenizer):
    with Encoder(tokenizer, None) as encoder:
        encoder.use_processes(2, pytest.fail)
        server = encoder._pool._server.pid
    await_end([server])


def test_where_they_cannot_be_started_one_goes_on_and_says_so(tokenizer, monkeypatch):
    monkeypatch.setattr("compress.data.encoding_pool.SERVER", "compress.data.no_such_module")
    said = []
    with Encoder(tokenizer, None) as encoder:
        encoder.use_processes(2, said.append)
        encoder._pool.wait_until_ready()
        assert len(list(encoder.encode(iter(TEXTS)))) > 200
        encoder.use_processes(2, said.append)
    assert len(said) == 1 and said[0].startswith("tokenizing takes one process only")


@pytest.mark.parametrize(
    ("wanted", "rate", "waited", "long"),
    [
        (10**6, 1e4, 1.0, False),
        (10**6, 1e4, 5.0, True),
        (10**6, 1e6, 5.0, False),
        (0, 1e4, 5.0, False),
        (0, 1e4, 11.0, True),
    ],
)
def test_only_what_takes_long_is_shared_out(wanted, rate, waited, long, tmp_path, monkeypatch):
    import numpy as np

    clock = [100.0]
    monkeypatch.setattr(packing.time, "monotonic", lambda: clock[0])
    with packing.Packing(begun(tmp_path, 0), 8, np.dtype("<u2"), None, 1) as work:
        clock[0] += waited
        work.writer.num_tokens = int(rate * waited)
        assert work.takes_long(wanted) == long


@pytest.mark.parametrize(
    ("num_cores", "free_mb", "expected"),
    [(8, 2**20, 8), (3, 2**20, 1), (200, 2**20, 64), (8, 1000, 2), (8, 100, 1), (1, 2**20, 1)],
)
def test_processes_are_as_many_as_there_is_room_for(num_cores, free_mb, expected, monkeypatch):
    monkeypatch.setattr(encoding_pool, "usable_cores", lambda: num_cores)
    monkeypatch.setattr(encoding_pool, "available_memory_bytes", lambda: free_mb * 2**20)
    assert encoding_pool.useful_processes() == expected


def test_one_core_is_used_by_one_process(tokenizer):
    with Encoder(tokenizer, None) as encoder:
        encoder.use_processes(1, pytest.fail)
        assert encoder._pool is None


PACKS = """
import sys
from pathlib import Path
from compress.data import encode, encoding_pool, pack, packing
from compress.records import Artifact
from tests.fakes import FakeContext
encoding_pool.FEWEST_CORES = 1
packing.SAVE_SECONDS, packing.WAITED_SECONDS, packing.LONG_SECONDS, pack.REPORT_EVERY = 0.0, 0.0, 0.0, 20
encode.BATCH_DOCUMENTS, encoding_pool.usable_cores = 30, lambda: 2
start = encoding_pool.EncodingPool.__init__
def started(self, *given):
    start(self, *given)
    self.wait_until_ready()
    print(self._server.pid, flush=True)
encoding_pool.EncodingPool.__init__ = started
tokenizer, folder = sys.argv[1:]
config = pack.Config(source="demo", sequence_length=64, samples=10**8)
pack.run(Artifact(key="t", kind="tokenizer", path=Path(tokenizer)), config, FakeContext(Path(folder), seed=3))
"""


def test_killed_it_leaves_no_process(demo_tokenizer, tmp_path):
    command = [sys.executable, "-c", PACKS, demo_tokenizer.path, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        server = int(process.stdout.readline())
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        assert len(children) == 2
        process.send_signal(signal.SIGKILL)
    await_end([server, *map(int, children)])
