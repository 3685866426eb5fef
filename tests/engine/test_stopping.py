"""A run that is being stopped waits for what is being saved, and hears what clusters send."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compress.engine import agent, launcher, rank, variables, workers
from compress.engine.store import Store
from compress.engine.tasks import Task
from compress.engine.workers import Workers
from compress.errors import Preempted
from tests.engine import test_launch as launching
from tests.engine.test_execute import count_file, node, start, wait_for
from tests.engine.test_launch import Worker, leave

pytestmark = pytest.mark.timeout(120)


def stopped(home, monkeypatch, says: int, grace: float | None = None) -> tuple[bool, float]:
    """Have a step stopped that takes two seconds to save; return whether it could, and how long the run waited."""
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    work = node("saving", "fake_saving", steps=says)
    partial = Store(home).partial(work.key)
    task = Task(
        key=work.key,
        use=work.use,
        settings={"steps": says},
        parent=None,
        inputs={},
        seed=0,
        root=home,
        lineage={},
    )
    running, events = Workers(grace=grace), []

    def stop_when_it_began():
        wait_for((partial / "began").exists)
        running.stop()

    stopper = threading.Thread(target=stop_when_it_began)
    stopper.start()
    began = time.monotonic()
    try:
        with pytest.raises(Exception, match=r"told to stop|killed by SIGKILL"):
            running.run(task, home.parent / "log", events.append)
    finally:
        stopper.join()
        running.close()
    assert not [event for event in events if event["event"] == "stop takes"], "a matter of driver and worker"
    return (partial / "saved").exists(), time.monotonic() - began


@pytest.mark.parametrize(
    ("says", "grace", "saved"), [(5, None, True), (0, None, False), (0, 10.0, True), (30, 0.2, False)]
)
def test_a_step_is_given_the_time_it_says_it_needs_or_what_was_asked(home, monkeypatch, says, grace, saved):
    assert stopped(home, monkeypatch, says, grace)[0] is saved


def test_a_clusters_warning_saves_the_work_and_its_last_word_does_not_cut_that_short(home):
    saving = node("slow", "fake_slow", steps=300)
    process = start(home)
    wait_for(count_file(home, saving).exists)
    server = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout)
    [worker] = map(
        int, subprocess.run(["pgrep", "-P", str(server)], capture_output=True, text=True).stdout.split()
    )
    for number in (signal.SIGUSR1, signal.SIGTERM):  # to every process of the job
        for pid in (server, worker, process.pid):
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, number)
    _, stderr = process.communicate(timeout=30)
    assert b"Preempted" in stderr and b"SIGKILL" not in stderr
    assert int(count_file(home, saving).read_text()) >= 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_fork_server_outlives_what_clusters_send(home, number):
    process = start(home, steps=60)
    slow = node("slow", "fake_slow", steps=60)
    wait_for(count_file(home, slow).exists)
    server = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout)
    os.kill(server, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


LISTENER = """
import sys, threading, time
from pathlib import Path
from compress.engine.launcher import JobFolder
from compress.engine.rank import listen
told = threading.Event()
listen(JobFolder(Path(sys.argv[1])), told)
print("listening", flush=True)



import ctypes
while not told.is_set():
    ctypes.CDLL(None).usleep(50_000)  # a wait in C, as for other processes
print("told", flush=True)
"""


def listening(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_among_several_that_is_told_to_end_asks_all_to_stop(tmp_path, number):
    process = listening(tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert said == "told\n" and process.returncode == 0 and (tmp_path / "stop").exists()


def test_a_process_that_is_told_to_end_after_another_failed_ends(tmp_path):
    leave(launcher.JobFolder(tmp_path), 1, "error", kind="StepFailed", message="memory ran out")
    process = listening(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and not (tmp_path / "stop").exists()


def context_of(folder: Path, leads: bool, told: threading.Event) -> rank.RankContext:
    task = Task(key="k", use="u", settings={}, parent=None, inputs={}, seed=0, root=folder, lineage={})
    return rank.RankContext(task, launcher.JobFolder(folder), folder, folder, leads, told)


@pytest.mark.parametrize(
    ("leads", "local_rank", "sees"), [(True, "0", True), (False, "0", True), (False, "1", False)]
)
def test_one_process_of_each_machine_looks_for_the_file(tmp_path, monkeypatch, leads, local_rank, sees):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    told = threading.Event()
    context = context_of(tmp_path, leads, told)
    assert not context.stopping
    (tmp_path / "stop").touch()
    assert context.stopping is sees
    told.set()
    assert context.stopping
    if context._events:
        context._events.close()


def test_what_a_stop_takes_is_passed_on_from_the_leader(tmp_path):
    leader = context_of(tmp_path, True, threading.Event())
    leader.stop_takes(42.0)
    leader._events.close()

    class Ended:
        def poll(self):
            return 0

    context = Worker()
    context.stopping = False
    [event] = launcher._events(Ended(), launcher.JobFolder(tmp_path), context, None)
    assert event == {"event": "stop takes", "seconds": 42.0}


def test_the_agent_asks_for_a_stop_and_ends_at_once_when_told_again(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from compress.engine.agent import _stop_on_signals;"
        "_stop_on_signals(Path(sys.argv[1])); print('ready', flush=True)\nwhile True: time.sleep(0.05)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "stop")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    wait_for((tmp_path / "stop").exists)
    process.send_signal(signal.SIGTERM)  # a cluster's second word
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_processes_on_every_machine_compute_in_the_same_surroundings(monkeypatch):
    found = variables.for_processes({"PATH": "/bin", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}, 10**6)
    assert found["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and found["OMP_NUM_THREADS"] == "1"
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True" and found["PATH"] == "/bin"
    assert found["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "0", "what a user has set stays"
    assert agent.ALONE == "-"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_how_a_user_has_memory_allocated_stays(monkeypatch, name):
    for each in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(each, raising=False)
    assert Workers()._environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv(name, "max_split_size_mb:128")
    environment = Workers()._environment
    assert environment[name] == "max_split_size_mb:128"
    assert [each for each in environment if each.endswith("ALLOC_CONF")] == [name]


def test_a_run_that_is_stopped_twice_by_the_same_signal_kills():
    sent = []
    running = Workers()
    running._pids.add(os.getpid())
    running._send_signal = lambda pid, number: sent.append(number)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        running._on_signal(number, None)
    assert sent == [signal.SIGTERM, signal.SIGTERM]
    running._on_signal(signal.SIGTERM, None)
    assert sent[-1] == signal.SIGKILL
    with pytest.raises(Preempted, match="SIGTERM"):
        running._raise_if_signalled()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_team_one_of_whose_processes_is_told_to_end_saves_and_goes_on_later(tmp_path, number):
    process = launching.start(tmp_path, "home", 2, tokens="60k")
    launching.await_checkpoint(tmp_path / "home", process)
    os.kill(launching.ranks(process.pid)[-1], number)
    said, _ = process.communicate()
    assert process.returncode == 75, said
    assert len(list((tmp_path / "home").glob("partial/*/sharded-0*"))) == 1
    taught = launching.finished(tmp_path, "home", 2, tokens="60k")["taught"]
    assert taught.facts["resumed"] == 1 and taught.facts["bit_exact"] is True
