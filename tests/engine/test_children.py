"""Work a step has done for it: submitted while it runs, or prepared before it, in real worker processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress import plugins
from compress.digests import canonical_digest
from compress.engine.execute import Execution
from compress.engine.garbage import collect
from compress.engine.plan_table import plan_table
from compress.engine.runs import save_ingredients
from compress.engine.store import Store
from compress.engine.tasks import Task, child_of
from compress.errors import DoesNotFit, Preempted, StepFailed
from compress.pipeline.keys import ingredients
from compress.pipeline.plan import Plan
from compress.records import Artifact, ModelSpec
from tests.engine.test_execute import DRAFT, execute, node, text_of, wait_for
from tests.fakes import FakeContext

pytestmark = pytest.mark.timeout(120)

TWO = (("fake_write", {"text": "b"}), ("fake_write", {"text": "c"}))


def search(*work, **settings):
    """A step that submits `work` on the artifact of `first`, and that node."""
    first = node("first", "fake_write", text="a")
    step = node("search", "fake_search", first, text=json.dumps(work), **settings)
    return first, step.model_copy(update={"role": "student"})


def child_key(use, **settings):
    """The key the planner's rule gives work on `first`."""
    config = plugins.internal(use).Config(**settings)
    return canonical_digest(ingredients(use, config, search()[0].key, {}, 0))


def told(events, kind):
    return [event for event in events if event["event"] == kind]


def test_submitted_work_is_done_in_a_process_of_its_own_under_the_planners_key(home):
    first, step = search(*TWO)
    execute(home, first, step)
    assert text_of(home, step) == "ab ac"
    store = Store(home)
    pids = {store.get(child_key("fake_write", text=text)).facts["pid"] for text in "bc"}
    assert len(pids | {store.get(first.key).facts["pid"]}) == 3


def test_another_run_that_submits_the_same_finds_it(home):
    _, events = execute(home, *search(*TWO))
    assert len(told(events, "child done")) == 2
    first, other = search(*reversed(TWO), ("fake_write", {"text": "d"}))
    _, events = execute(home, first, other)
    assert text_of(home, other) == "ac ab ad"
    [begun] = told(events, "child start")
    assert begun["child"] == f"fake_write-{child_key('fake_write', text='d')[:8]}"


def test_the_record_shows_what_a_step_submitted_and_counts_its_time(home):
    record, events = execute(home, *search(("fake_warn", {"text": "mind"}), ("fake_write", {"text": "b"})))
    [step] = record.steps
    warned, written = step.children
    assert (warned.use, warned.how, warned.key) == (
        "fake_warn",
        "submitted",
        child_key("fake_warn", text="mind"),
    )
    assert warned.settings["text"] == "mind" and warned.facts == {"a": 1}
    assert warned.realized.num_parameters == 7 and written.realized is None
    assert step.seconds > warned.seconds + written.seconds > 0.3
    assert step.warnings == ("mind",)
    [warning] = told(events, "warning")
    assert (warning["node"], warning["child"]) == ("search", f"fake_warn-{warned.key[:8]}")
    again, _ = execute(home, *search(("fake_write", {"text": "b"}), ("fake_warn", {"text": "mind"})))
    assert again.steps[0].children == (written, warned), "it was found, and still took what it took"
    assert again.steps[0].seconds > warned.seconds + written.seconds


def test_a_childs_progress_is_told_under_its_step(home):
    _, events = execute(home, *search(("fake_slow", {"steps": 30})))
    progress = told(events, "progress")
    assert progress[-1]["done"] == 30
    assert {(e["node"], e["child"].partition("-")[0]) for e in progress} == {("search", "fake_slow")}
    json.dumps(events)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("boom", StepFailed, "step 'search' .*fake_bad, which it submitted: ValueError: boom\n.*fake_bad-"),
        ("die", StepFailed, "fake_bad, which it submitted: its process was killed by SIGKILL"),
        ("full", DoesNotFit, "no room left on the disk"),
    ],
)
def test_what_a_child_raises_is_raised_in_its_step(home, text, error, message):
    first, step = search(TWO[0], ("fake_bad", {"text": text}))
    with pytest.raises(error, match=message):
        execute(home, first, step)
    store = Store(home)
    assert child_key("fake_write", text="b") in store
    assert child_key("fake_bad", text=text) not in store and step.key not in store
    assert len(told(execute.events, "child failed")) == 1


def test_a_step_may_go_on_without_a_child_that_failed(home):
    first, step = search(("fake_bad", {"text": "boom"}), TWO[0], forgives=True)
    record, _ = execute(home, first, step)
    assert text_of(home, step) == "ab"
    [child] = record.steps[0].children
    assert child.key == child_key("fake_write", text="b")
    assert "ValueError: boom" in record.steps[0].facts["failed"][0]


def test_what_was_submitted_submits_nothing(home):
    first, step = search(("fake_search", {"text": json.dumps(TWO)}))
    with pytest.raises(StepFailed, match="fake_search was submitted: it cannot submit fake_write"):
        execute(home, first, step)


def test_a_child_needs_an_artifact_for_every_reference_in_its_settings(home):
    parent = Artifact(key="k", kind="hf", path=home)
    task = Task(key="s", use="search", settings={}, parent=parent, inputs={}, seed=0, root=home, lineage={})
    with pytest.raises(AssertionError, match="distill also needs inputs: data, teacher"):
        child_of(task, "distill", {"tokens": 10}, parent, {})


def test_steps_side_by_side_have_shared_work_done_once(home):
    first, a = search(("fake_warn", {"text": "once"}))
    b = search(("fake_warn", {"text": "once"}), TWO[0])[1].model_copy(update={"name": "other"})
    folder = home / "runs" / "r-12345678"
    folder.mkdir(parents=True)
    events = []
    plan = Plan(nodes=(first, a, b), rehearsal=True)
    record = Execution(plan, DRAFT, folder, Store(home), None, events.append).run()
    assert text_of(home, a) == "once" and text_of(home, b) == "once ab"
    assert record.steps[0].children[0] == record.steps[1].children[0]
    assert len(told(events, "warning")) == 1


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from compress.engine import workers
workers.PRELOAD = ("compress.engine.worker",)
from tests.engine.test_children import SLOW, search
from tests.engine.test_execute import execute
execute(Path(sys.argv[2]), *search(*SLOW, saves=sys.argv[3] == "saves"))
"""
SLOW = (("fake_write", {"text": "b"}), ("fake_slow", {"steps": 300}))


@pytest.fixture(params=["saves", pytest.param("has nothing to save", marks=pytest.mark.slow)])
def working(home, request):
    """A run whose step's second child is at work; its process, the step and the file the child counts in."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT, root, str(home), request.param]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    first, step = search(*SLOW, saves=request.param == "saves")
    count = Store(home).partial(child_key("fake_slow", steps=300)) / "count"
    wait_for(count.exists)
    with process:
        yield process, (first, step), count
        process.kill()


def check_it_goes_on(home, nodes, reached):
    """The second run finds the finished child, and goes on with the other where it was."""
    assert (Store(home).partial(nodes[1].key) / "began").exists()
    _, events = execute(home, *nodes)
    assert [e["child"].partition("-")[0] for e in told(events, "child start")] == ["fake_slow"]
    assert told(events, "progress")[0]["done"] > reached, "it began again"
    assert text_of(home, nodes[1]) == "ab 300 steps"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_child_and_step_and_a_second_run_goes_on(home, working, number):
    process, nodes, count = working
    began = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert (b"Ctrl-C" if number == signal.SIGINT else b"SIGTERM") in stderr.splitlines()[-1]
    assert not list((home / "store").glob(".staging-*"))
    check_it_goes_on(home, nodes, int(count.read_text()))


def test_killing_the_driver_kills_child_and_step_and_loses_nothing(home, working):
    process, nodes, count = working
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)
    reached = count.read_text()
    time.sleep(0.5)
    assert count.read_text() == reached, "an orphan goes on working"
    check_it_goes_on(home, nodes, int(reached))


def test_unfinished_work_keeps_its_children_from_the_garbage(home, working):
    process, nodes, count = working
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    save_ingredients(Plan(nodes=nodes), home / "runs/r-12345678")
    assert collect(Store(home), keep_runs=1, dry_run=False) == (0, 0)
    check_it_goes_on(home, nodes, int(count.read_text()))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGKILL, StepFailed)])
@pytest.mark.parametrize("whom", ["step", "child"])
def test_a_step_or_child_ended_from_outside_ends_both(home, number, error, whom):
    first, step = search(("fake_slow", {"steps": 400}))
    folder = home / "runs" / "r-12345678"
    folder.mkdir(parents=True)
    killed = []

    def kill(event):
        if event["event"] == "progress" and not killed:
            pid = int((Store(home).partial(step.key) / "began").read_text())
            others = [w for server in children(os.getpid()) for w in children(server) if w != pid]
            killed.append(pid if whom == "step" else others[0])
            os.kill(killed[0], number)

    def children(parent):
        found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True).stdout.split()
        return [int(pid) for pid in found]

    began = time.monotonic()
    with pytest.raises(error):
        Execution(Plan(nodes=(first, step)), DRAFT, folder, Store(home), None, kill).run()
    assert time.monotonic() - began < 6, "the other worked on to its end"
    assert child_key("fake_slow", steps=400) not in Store(home)


def test_children_of_kept_runs_are_no_garbage(home):
    first, step = search(*TWO)
    execute(home, first, step)
    save_ingredients(Plan(nodes=(first, step)), home / "runs/r-12345678")
    execute(home, *search(("fake_write", {"text": "not kept"}), forgives=True))
    deleted, _ = collect(Store(home), keep_runs=1, dry_run=False)
    store = Store(home)
    assert deleted == 2
    assert set(store.committed()) == {first.key, step.key, *(child_key("fake_write", text=t) for t in "bc")}


def test_the_fake_context_does_the_same_as_the_engine(home, tmp_path):
    first, step = search(*TWO)
    execute(home, first, step)
    context = FakeContext(tmp_path / "made")
    module = plugins.internal("fake_search")
    module.run(Store(home).get(first.key), step.config, context)
    assert (context.folder / "text").read_text() == text_of(home, step)
    assert set(context.submitted) == {child_key("fake_write", text=text) for text in "bc"}


def prepared():
    """`first`, scores made from it, and two steps that both use them."""
    first = node("first", "fake_write", text="a")
    scores = node("first/scores", "fake_warn", first, text="few samples")
    ingredients = {**scores.ingredients, "settings": scores.config.model_dump()}
    scores = scores.model_copy(update={"role": "internal", "ingredients": ingredients})
    spec = ModelSpec(config={}, tensors={}, num_parameters=1)
    steps = [
        node(name, "fake_search", first, text=json.dumps([["fake_write", {"text": name}]])).model_copy(
            update={"role": "student", "inputs": {"scores": scores.name}, "spec": spec}
        )
        for name in ("narrow", "narrower")
    ]
    return first, scores, *steps


def test_what_was_prepared_is_recorded_with_the_first_step_that_asked(home):
    record, events = execute(home, *prepared())
    narrow, narrower = record.steps
    assert [child.how for child in narrow.children] == ["prepared", "submitted"]
    assert [child.how for child in narrower.children] == ["submitted"]
    assert narrow.seconds > 0.3 > narrower.seconds
    assert narrow.warnings == ("few samples",)
    assert [e["node"] for e in told(events, "start")].count("first/scores") == 1


def test_what_was_prepared_is_made_again_only_when_needed(home):
    first, scores, narrow, narrower = prepared()
    execute(home, first, scores, narrow)
    shutil.rmtree(Store(home).folder(scores.key))
    _, events = execute(home, first, scores, narrow)
    assert not told(events, "start")
    _, events = execute(home, first, scores, narrow, narrower)
    assert [e["node"] for e in told(events, "start")] == ["first/scores", "narrower"]


def test_the_plan_shows_what_is_prepared_once_and_counts_its_time(home):
    first, scores, narrow, narrower = prepared()
    execute(home, first, scores, narrow, narrower)
    store = Store(home)
    for key in (scores.key, narrower.key):
        store.discard(key)
    lines = plan_table(Plan(nodes=(first, scores, narrow, narrower)), "r", store).splitlines()[1:]
    assert [line.split("  ")[0].strip() or line.split()[0] for line in lines[1:4]] == [
        "scores",
        "narrow",
        "narrower",
    ]
    assert lines[1].startswith("  scores") and re.search(r"~0\.[2-9] s", lines[1]) and "to run" in lines[1]
    assert "fake_warn" in lines[1] and "first" in lines[1]


def test_the_plan_asks_for_nothing_that_the_run_does_not_need(home):
    nodes = prepared()
    execute(home, *nodes)
    store = Store(home)
    store.discard(nodes[1].key)
    lines = plan_table(Plan(nodes=nodes), "r", store).splitlines()[1:]
    assert lines[1].startswith("  scores") and lines[1].endswith("not needed: what is made from it is there")
    assert not re.search(r"~0\.\d s", lines[1]) and lines[-1] == "everything is in the store"
    assert not told(execute(home, *nodes)[1], "start")
