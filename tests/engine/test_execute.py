"""Whole plans of fake steps, in real worker processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress import plugins
from compress.digests import canonical_digest
from compress.engine.execute import Execution
from compress.engine.runs import all_runs, find_run
from compress.engine.status import status_lines
from compress.engine.store import Store
from compress.errors import DoesNotFit, Preempted, StepFailed
from compress.machine import machine_named
from compress.pipeline.plan import Node, Plan
from compress.records import RunRecord, Work

pytestmark = pytest.mark.timeout(120)


def node(name, use, parent=None, **settings):
    config = plugins.internal(use).Config(**settings)
    ingredients = {"use": use, "settings": config.model_dump(), "parent": parent.key if parent else None}
    return Node(
        name=name,
        use=use,
        role="measurement",  # wanted for its own sake, and no model with a spec
        kind="text",
        key=canonical_digest(ingredients),
        config=config,
        parent=parent.name if parent else None,
        ingredients=ingredients,
    )


DRAFT = RunRecord(
    id="r-12345678",
    name="r",
    status="running",
    started="",
    command="",
    pipeline="",
    seed=0,
    environment={},
)


def execute(home, *nodes, rehearsal=False):
    events = []
    folder = home / "runs" / "r-12345678"
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(nodes=nodes, rehearsal=rehearsal)
    execution = Execution(plan, DRAFT, folder, Store(home), None, events.append)
    try:
        return execution.run(), events
    finally:
        execute.events = events


def text_of(home, node):
    return (Store(home).folder(node.key) / "text").read_text()


def test_a_plan_is_done_once_and_then_found_in_the_store(home):
    first = node("first", "fake_write", text="a")
    second = node("second", "fake_write", first, text="b")
    record, events = execute(home, first, second)
    assert record.status == "done" and text_of(home, second) == "ab"
    assert [e["node"] for e in events if e["event"] == "start"] == ["first", "second"]
    _, events = execute(home, first, second)
    assert not [e for e in events if e["event"] == "start"]


def test_a_rehearsal_teaches_nothing_about_how_long_the_real_work_takes(home):
    execute(home, node("tiny", "fake_write", text="a"), rehearsal=True)
    assert not (home / "rates.json").exists()
    execute(home, node("real", "fake_write", text="b"))
    assert (home / "rates.json").exists()


def test_what_is_made_twice_side_by_side_is_made_once_and_blamed_on_no_other_run(home):
    once, twice = (node(name, "fake_slow", steps=30) for name in ("once", "twice"))
    assert once.key == twice.key
    _, events = execute(home, once, twice, rehearsal=True)
    [waiting] = [e for e in events if e["event"] == "waiting"]
    assert waiting["message"].startswith("it is being made already")
    assert {e["node"] for e in events if e["event"] == "done"} == {"once", "twice"}


@pytest.mark.parametrize(("room", "together"), [(1, False), (4, True)])
def test_a_rehearsal_works_on_as_many_steps_at_once_as_there_is_room_for(home, room, together, monkeypatch):
    monkeypatch.setattr("compress.engine.execute.most_workers", lambda cores: room)
    _, events = execute(
        home, *(node(n, "fake_slow", steps=n_) for n, n_ in (("a", 3), ("b", 4))), rehearsal=True
    )
    order = [(e["event"], e["node"]) for e in events if e["event"] in ("start", "done")]
    assert (order[1][0] == "start") is together


def test_every_step_has_a_process_of_its_own(home):
    nodes = [node(f"n{i}", "fake_write", text=str(i)) for i in range(3)]
    execute(home, *nodes)
    pids = {Store(home).get(n.key).facts["pid"] for n in nodes}
    assert len(pids) == 3 and os.getpid() not in pids


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("boom", StepFailed, "step 'bad' .*ValueError: boom"),
        ("die", StepFailed, "killed by SIGKILL; the system may have run out of memory"),
        (
            "full",
            DoesNotFit,
            r"step 'bad' \(fake_bad\): no room left on the disk of .*home \(COMPRESS_HOME; .* free now\).*gc",
        ),
        ("lib", DoesNotFit, r"step 'bad' \(fake_bad\): no room left on the disk of .*home"),
    ],
)
def test_a_failure_is_told_and_not_cached(home, text, error, message):
    good, bad = node("good", "fake_write", text="a"), node("bad", "fake_bad", text=text)
    with pytest.raises(error, match=message):
        execute(home, good, bad)
    store = Store(home)
    assert good.key in store and bad.key not in store
    saved = RunRecord.model_validate_json((home / "runs/r-12345678/run.json").read_bytes())
    assert saved.status == "failed" and saved.error and "bad" in saved.error


def test_a_disk_too_full_for_the_runs_own_notes_is_told_with_the_step(home):
    slow = node("slow", "fake_slow", steps=60)
    folder = home / "runs" / "r-12345678"
    folder.mkdir(parents=True)

    def full(event):
        if event["event"] in ("progress", "failed", "finish"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DoesNotFit, match=r"step 'slow' \(fake_slow\): no room left on the disk of"):
        Execution(Plan(nodes=(slow,)), DRAFT, folder, Store(home), None, full).run()


def test_where_one_of_several_processes_died_the_log_is_named(home):
    with pytest.raises(StepFailed, match="one of its processes died") as raised:
        execute(home, node("team", "fake_team"))
    log = str(raised.value).rpartition("The full story is in ")[2]
    assert Path(log) == home / "runs/r-12345678/logs/team.log" and Path(log).exists()


def test_what_does_not_fit_is_refused_before_anything_runs(home):
    huge = node("huge", "fake_write", text="a").model_copy(update={"work": Work(disk_bytes=1 << 60)})
    with pytest.raises(DoesNotFit, match=r"[GM]B are free"):
        execute(home, huge)
    greedy = huge.model_copy(update={"work": Work(peak_memory_bytes=1 << 60)})
    with pytest.raises(DoesNotFit, match="of memory"):
        execute(home, greedy)
    assert not [e for e in execute.events if e["event"] == "start"]


def test_what_the_card_cannot_hold_is_refused_before_anything_runs(home, monkeypatch):
    monkeypatch.setattr("compress.machine.this_machine", lambda: machine_named("l4"))
    greedy = node("greedy", "fake_write", text="a").model_copy(
        update={"work": Work(peak_memory_bytes=30 * 10**9)}
    )
    with pytest.raises(
        DoesNotFit, match=r"step 'greedy' needs about 27\.9 GiB on the card; l4 gives"
    ) as refused:
        execute(home, node("first", "fake_write", text="a"), greedy)
    assert refused.value.exit_code == 5
    assert not [e for e in execute.events if e["event"] == "start"]


def test_progress_carries_the_remaining_time(home):
    _, events = execute(home, node("slow", "fake_slow", steps=90))
    progress = [e for e in events if e["event"] == "progress"]
    assert progress and progress[-1]["done"] == 90
    assert any("seconds_left" in e for e in progress)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from compress.engine import workers
workers.PRELOAD = ("compress.engine.worker",)
from tests.engine.test_execute import execute, node
steps, kind = int(sys.argv[3]), sys.argv[4]
work = node("slow", "fake_slow", steps=steps) if kind == "slow" else node("slow", "fake_bad", text="stubborn")
execute(Path(sys.argv[2]), work)
"""


def start(home, steps=300, kind="slow", prepare=None):
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, root, str(home), str(steps), kind],
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepare,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def count_file(home, slow):
    return Store(home).partial(slow.key) / "count"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_work_and_a_second_run_goes_on_from_it(home, number):
    slow = node("slow", "fake_slow", steps=300)
    # Tests that `nohup` started would hand on that they ignore hang-ups.
    process = start(home, prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    wait_for(count_file(home, slow).exists)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert (b"Ctrl-C" if number == signal.SIGINT else number.name.encode()) in stderr
    assert find_run("r-12345678").status == "interrupted"
    reached = int(count_file(home, slow).read_text())
    assert 0 < reached < 300
    _, events = execute(home, slow)
    first = next(e for e in events if e["event"] == "progress")
    assert first["done"] > reached, "it began again"
    assert text_of(home, slow) == "300 steps"


def test_a_run_that_ignores_hang_ups_goes_on(home):
    """What ``nohup`` does."""
    process = start(home, steps=60, prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    slow = node("slow", "fake_slow", steps=60)
    wait_for(count_file(home, slow).exists)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0 and text_of(home, slow) == "60 steps"


def test_a_run_whose_driver_was_killed_is_not_called_running(home):
    process = start(home)
    wait_for((home / "runs/r-12345678/run.json").exists)
    assert find_run("r-12345678").status == "running"
    process.kill()
    process.communicate()
    killed = find_run("r-12345678")
    assert killed.status == "interrupted" and "killed" in str(killed.error)
    assert "interrupted" in "".join(status_lines(all_runs(), detailed=False))


def test_a_step_that_saves_nothing_is_stopped_at_once(home):
    process = start(home, kind="stubborn")
    bad = node("slow", "fake_bad", text="stubborn")
    wait_for((home / "store" / f".staging-{bad.key}" / "half").exists)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert not list((home / "store").glob(".staging-*"))


def test_killing_the_driver_kills_its_workers_and_loses_no_partial_work(home):
    slow = node("slow", "fake_slow", steps=300)
    process = start(home)
    wait_for(count_file(home, slow).exists)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)
    reached = count_file(home, slow).read_text()
    time.sleep(0.5)
    assert count_file(home, slow).read_text() == reached, "an orphan goes on working"
    execute(home, slow)
    assert text_of(home, slow) == "300 steps"


def test_events_are_serializable(home):
    _, events = execute(home, node("first", "fake_write", text="a"))
    json.dumps(events)


def test_a_worker_told_to_stop_from_outside_counts_as_preempted(home):
    slow = node("slow", "fake_slow", steps=400)
    folder = home / "runs" / "r-12345678"
    folder.mkdir(parents=True)

    def kill_first(event):
        if event["event"] == "progress":
            [worker] = [w for server in children(os.getpid()) for w in children(server)]
            os.kill(worker, signal.SIGTERM)

    def children(parent):
        return map(int, subprocess.run(["pgrep", "-P", str(parent)], capture_output=True).stdout.split())

    with pytest.raises(Preempted):
        Execution(Plan(nodes=(slow,)), DRAFT, folder, Store(home), None, kill_first).run()
