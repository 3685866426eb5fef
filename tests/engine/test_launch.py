"""Steps on several processes, from a pipeline file to the result."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.engine import launcher, rank
from compress.engine.runs import all_runs
from compress.engine.store import Store
from compress.engine.tasks import Task
from compress.errors import InputError, StepFailed
from compress.train.launch import Launch

PIPELINE = """
version: 1
name: team
model:
  tokenizer: bytes
  config:
    {{model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}}
data:
  recovery: {{source: demo, sequence_length: 64, tokens: 60k}}
  heldout: {{source: demo, split: heldout, sequence_length: 64, samples: 8}}
evaluate: {{tasks: [world_facts], samples: 4}}
profile: {{prompt_tokens: [8], new_tokens: 4, repeats: 1}}
steps:
  - {{name: taught, use: train, measure: [], tokens: {tokens}, batch_tokens: 960, learning_rate: 2e-3,
     checkpoint_seconds: 0.2, precision: fp32, held_out: heldout, held_out_rows: 4, tasks: [world_facts],
     task_samples: 4, stop_after: 50{launch}}}
  - {{name: copied, use: distill, measure: [], teacher: taught, from: original, tokens: 8k, batch_tokens: 960,
     learning_rate: 2e-3, precision: fp32{launch}}}
"""

TAUGHT = ("--until", "taught")
"""One step is enough to be killed in."""


def command(folder: Path, processes: int | str | None, *more: str, tokens: str = "20k") -> list[str]:
    launch = f", launch: {{processes: {processes}}}" if processes else ""
    (folder / "team.yaml").write_text(PIPELINE.format(launch=launch, tokens=tokens))
    return [sys.executable, "-m", "compress", "run", str(folder / "team.yaml"), *more]


def start(
    folder: Path, home: str, processes: int | str | None, *more: str, tokens: str = "20k"
) -> "subprocess.Popen[str]":
    environment = {**os.environ, "COMPRESS_HOME": str(folder / home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, processes, *more, tokens=tokens),
        env=environment,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finished(folder: Path, home: str, processes: int | str | None, *more: str, tokens: str = "20k") -> dict:
    process = start(folder, home, processes, *more, tokens=tokens)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return steps(folder / home)


def steps(home: Path) -> dict:
    [record] = all_runs(home)
    return {step.name: step for step in record.steps}


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(Store(home).folder(steps(home)[name].key) / "model.safetensors")


def ranks(pid: int) -> list[int]:
    """The processes below one that are ranks."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    below = [pid_below for child in map(int, found) for pid_below in (child, *ranks(child))]
    lines = {each: _command_line(each) for each in below}
    return [each for each, line in lines.items() if b"engine.rank" in line and b"engine.agent" not in line]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def await_checkpoint(home: Path, process: "subprocess.Popen[str]") -> None:
    names = "sharded-0000000[1-9]*", "sharded-000000[1-9]*", "checkpoint.pt"
    while not any(list(home.glob(f"partial/*/{name}")) for name in names):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_does(tmp_path):
    one, two = finished(tmp_path, "one", None), finished(tmp_path, "two", 2)
    for name in ("taught", "copied"):
        assert one[name].key == two[name].key
        assert two[name].facts["processes"] == 2 and "processes" not in one[name].facts
        losses = [[point.loss for point in step.curve] for step in (one[name], two[name])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        ours, theirs = weights(tmp_path / "two", name), weights(tmp_path / "one", name)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], atol=2e-3) for key in ours)
    assert one["taught"].curve[-1].tasks == two["taught"].curve[-1].tasks != {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_process_fails_the_step_and_the_next_run_ends_in_the_same_bytes(tmp_path):
    finished(tmp_path, "undisturbed", 2, *TAUGHT, tokens="60k")
    process = start(tmp_path, "disturbed", 2, *TAUGHT, tokens="60k")
    await_checkpoint(tmp_path / "disturbed", process)
    both = ranks(process.pid)
    assert len(both) == 2
    os.kill(both[-1], signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 3 and "one of its processes died" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)
    taught = finished(tmp_path, "disturbed", 2, *TAUGHT, tokens="60k")["taught"]
    assert taught.facts["resumed"] == 1 and taught.facts["bit_exact"] is True
    ours, theirs = (weights(tmp_path / home, "taught") for home in ("disturbed", "undisturbed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("before", "now"), [(2, 1), (2, None), (None, 2)])
def test_another_number_of_processes_takes_the_work_up_and_the_record_says_so(tmp_path, before, now):
    process = start(tmp_path, "home", before, *TAUGHT, tokens="60k")
    await_checkpoint(tmp_path / "home", process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    taught = finished(tmp_path, "home", now, *TAUGHT, tokens="60k")["taught"]
    assert taught.facts["resumed"] == 1 and taught.facts["bit_exact"] is False
    sizes = ", then ".join(str(number or 1) for number in (before, now))
    assert taught.facts["bit_exact_ended_by"] == f"it was worked on by {sizes} processes"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_processes_that_are_still_starting_die_with_the_driver_too(tmp_path, seconds):
    process = start(tmp_path, "home", 2)
    while len(both := ranks(process.pid)) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(seconds)
    process.kill()
    with process:
        process.wait()
    deadline = time.monotonic() + 20
    while left := [pid for pid in both if b"engine.rank" in _command_line(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{len(left)} processes outlived the driver")
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_machines_that_share_the_store_train_together(tmp_path):
    """Both are this machine: what the run says to start on the other is started here, once for each step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    process = start(tmp_path, "home", f"1, nodes: 2, rendezvous: '{meeting}'")
    said, others = [], []
    with process:
        for line in process.stdout:
            said.append(line)
            _, told, command_there = line.partition("on each start: ")
            if told and command_there not in [asked for asked, _ in others]:
                others.append((command_there, subprocess.Popen(command_there.split(), cwd=tmp_path)))
    assert process.wait() == 0, "".join(said)
    assert [other.wait() for _, other in others] == [0, 0]
    assert [steps(tmp_path / "home")[name].facts["processes"] for name in ("taught", "copied")] == [2, 2]


class Worker:
    """As much of a worker's context as concluding needs."""

    peak_below = 0


@pytest.fixture
def folder(tmp_path):
    return launcher.JobFolder(tmp_path)


def leave(folder, rank, ended, **more):
    result = {"rank": rank, "ended": ended, "peak_memory_bytes": 10, **more}
    folder.result(rank).write_text(json.dumps(result))


class Waiting:
    """A torchrun that ends when asked for the fourth time, and as much of a context as listening needs."""

    stopping = False

    def __init__(self, folder):
        self.folder = folder
        self.looks = 0

    def poll(self):
        self.looks += 1
        if self.looks == 3:
            self.folder.events.write_text('{"event": "warning", "message": "all are here"}\n')
        return 0 if self.looks == 4 else None


def heard(folder, others):
    process = Waiting(folder)
    return [event["message"] for event in launcher._events(process, folder, process, others)]


def test_the_run_says_again_and_again_that_it_waits_until_all_have_joined(folder, monkeypatch):
    monkeypatch.setattr(launcher, "REMIND_SECONDS", 0.0)
    launch = Launch(processes=8, nodes=3, rendezvous="head:29400")
    others = launcher._others(launch, folder)
    assert others.startswith("waiting for 2 more machines to join at head:29400 (")
    assert (
        "; on each start: " in others
        and "compress.engine.agent - --nproc-per-node 8" in others
        and str(folder.job) in others
    )
    assert "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network between them" in others
    assert heard(folder, others) == [others, others, "all are here"]


def test_a_run_on_one_machine_waits_for_nobody(folder):
    assert launcher._others(Launch(processes=8), folder) is None
    assert heard(folder, None) == ["all are here"]


def test_what_a_process_raised_is_raised(folder):
    leave(folder, 1, "error", kind="InputError", message="wrong tokenizer")
    with pytest.raises(InputError, match="wrong tokenizer"):
        launcher._concluded(1, folder, Worker())


def test_a_process_that_died_without_a_word_fails_the_step(folder):
    leave(folder, 1, "done", outcome={})
    with pytest.raises(StepFailed, match="one of its processes died"):
        launcher._concluded(1, folder, Worker())


def test_a_process_that_found_itself_alone_is_not_what_failed(folder):
    leave(folder, 0, "alone")
    with pytest.raises(StepFailed, match="one of its processes died"):
        launcher._concluded(1, folder, Worker())


def test_memory_is_that_of_all_processes(folder):
    worker = Worker()
    for number in range(3):
        leave(folder, number, "done", outcome={"facts": {"rank": number}})
    assert launcher._concluded(0, folder, worker).facts == {"rank": 0}
    assert worker.peak_below == 30


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="8 processes need a GPU each, here are 2"):
        launcher._check_devices(8)


def test_machines_meet_where_the_file_says():
    told = launcher._torchrun(
        Launch(processes=8, nodes=2, rendezvous="head:29400"), Path("/store/partial/KEY/launch/job.json")
    )
    assert (
        told[told.index("--rdzv-endpoint") + 1] == "head:29400" and told[told.index("--rdzv-id") + 1] == "KEY"
    )
    assert told[told.index("--nnodes") + 1] == "2" and "--standalone" not in told


@pytest.mark.parametrize("text", ["full", "lib"])
def test_a_process_among_several_says_that_the_disk_is_full(home, tmp_path, text):
    task = Task(
        key="k",
        use="fake_bad",
        settings={"text": text},
        parent=None,
        inputs={},
        seed=0,
        root=tmp_path,
        lineage={},
    )
    context = rank.RankContext(task, launcher.JobFolder(tmp_path), tmp_path, tmp_path, leads=False)
    result = rank._done(task, context)
    assert result["kind"] == "DoesNotFit" and "COMPRESS_HOME" in result["message"]
