"""Does training that is killed end in the bytes it would have ended in? ``kill -9`` at random moments of a training.

A small model is distilled with everything that must survive: held-out looks, tasks, kept best weights, checkpoints.
Each kill is drawn after the training's first checkpoint is there; it hits the whole process tree, one worker or the
driver alone, in turn by chance. Then the same command runs again. One run takes several kills; every run's files are
compared with those of one that nobody disturbed.

    python tests/benchmarks/training_kills.py [--kills 30] [--processes 1] [--quick]
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compress.digests import file_digest
from compress.engine.runs import all_runs
from compress.engine.store import Store
from compress.environment import environment

RESULTS = Path(__file__).parent / "results"
KILLS_A_RUN = 3
PIPELINE = """
version: 1
name: kills
model:
  tokenizer: bytes
  config:
    {{model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 128, intermediate_size: 384,
     num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}}
data:
  calibration: {{source: demo, split: calibration, sequence_length: 64, samples: 32}}
  recovery: {{source: demo, sequence_length: 64, tokens: 60k}}
  heldout: {{source: demo, split: heldout, sequence_length: 64, samples: 8}}
evaluate: {{tasks: [world_facts], samples: 4}}
profile: {{prompt_tokens: [8], new_tokens: 4, repeats: 1}}
steps:
  - {{name: narrow, use: prune.width, target: {{params: 60%}}, importance: activation}}
  - {{name: recover, use: distill, tokens: {tokens}, batch_tokens: 1024, checkpoint_seconds: 0.3,
     held_out: heldout, held_out_rows: 8, tasks: [world_facts], task_samples: 8, stop_after: 100{launch}}}
"""


def main() -> None:
    """Kill, go on, compare; print what happened and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tokens", default="400k")
    parser.add_argument("--quick", action="store_true", help="three kills of a short training")
    given = parser.parse_args()
    if given.quick:
        given.kills, given.tokens = 3, "100k"
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given)
    write(rows, given)


def measure(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a run."""
    launch = f", launch: {{processes: {given.processes}}}" if given.processes > 1 else ""
    (folder / "kills.yaml").write_text(PIPELINE.format(tokens=given.tokens, launch=launch))
    began = time.monotonic()
    assert start(folder, "undisturbed").wait() == 0, (folder / "log").read_text()
    seconds = time.monotonic() - began
    expected = payload(folder / "undisturbed")
    print(f"undisturbed: {seconds:.0f} s, {len(expected)} files", flush=True)
    chance, rows = random.Random(0), []
    while sum(row["kills"] for row in rows) < given.kills:
        row = disturbed(
            folder, chance, seconds, min(KILLS_A_RUN, given.kills - sum(r["kills"] for r in rows))
        )
        found = payload(folder / "disturbed")
        rows.append({**row, "resumed": resumed(folder / "disturbed"), "identical": found == expected})
        print(rows[-1], flush=True)
        shutil.rmtree(folder / "disturbed")
    return rows


def disturbed(folder: Path, chance: random.Random, seconds: float, kills: int) -> dict[str, Any]:
    """Run to the end with so many kills; return how many hit, and whom."""
    victims: list[str] = []
    while True:
        process = start(folder, "disturbed")
        if len(victims) < kills and await_training(folder / "disturbed", process):
            try:
                process.wait(timeout=chance.uniform(0.0, 0.3 * seconds))
            except subprocess.TimeoutExpired:
                victims.append(kill(process, chance))
                continue
        code = process.wait()
        if code == 0:
            return {"kills": len(victims), "victims": victims}
        assert victims and victims[-1] == "worker", (folder / "log").read_text()


def start(folder: Path, home: str) -> "subprocess.Popen[bytes]":
    """Start the run in a process group of its own."""
    variables = {**os.environ, "COMPRESS_HOME": str(folder / home), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "compress", "run", str(folder / "kills.yaml")],
            env=variables,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def await_training(home: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until a worker trains: its checkpoint is younger than the process. False when the run ended before."""
    began = time.time()
    while process.poll() is None:
        # Of one process it is a file that is replaced, of several a folder with a new name each time.
        files = [*home.glob("partial/*/checkpoint.pt"), *home.glob("partial/*/sharded-*")]
        if any(modified(path) > began for path in files):
            return True
        time.sleep(0.05)
    return False


def modified(path: Path) -> float:
    """Return when a file was written last, long ago for one that is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def kill(process: "subprocess.Popen[bytes]", chance: random.Random) -> str:
    """Kill the tree, the driver, or one process below it; return whom. Returns when the driver is gone."""
    victim = chance.choice(["tree", "driver", "worker"])
    below = descendants(process.pid)
    busy = [pid for pid in below if cpu_seconds(pid) > 1]
    chosen = {"tree": [process.pid, *below], "driver": [process.pid], "worker": busy[-1:] or below[-1:]}[
        victim
    ]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    for _ in range(200):  # what the driver left must be gone before the next run takes its locks
        if not any(Path(f"/proc/{pid}").exists() for pid in below):
            break
        time.sleep(0.05)
    return victim


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [each for child in map(int, found) for each in (child, *descendants(child))]


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def payload(home: Path) -> dict[str, str]:
    """Return the digest of every file of the trained model, manifest and logs left out."""
    [record] = all_runs(home)
    assert record.status == "done", record.error
    step = next(step for step in record.steps if step.name == "recover")
    files = Store(home).folder(step.key).iterdir()
    found = {path.name: file_digest(path) for path in files if path.name not in ("manifest.json", "COMMIT")}
    assert any(name.endswith(".safetensors") for name in found)
    return found


def resumed(home: Path) -> int:
    """Return how often the training was taken up again."""
    [record] = all_runs(home)
    facts = next(step for step in record.steps if step.name == "recover").facts
    return int(facts["resumed"])  # type: ignore[arg-type]


def write(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Write the result file."""
    kills, identical = sum(row["kills"] for row in rows), all(row["identical"] for row in rows)
    facts = environment()
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: facts[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {key: facts[key] for key in ("python", "torch", "transformers")},
        "command": " ".join(["python", "tests/benchmarks/training_kills.py", *sys.argv[1:]]),
        "rows": rows,
        "targets": [
            {
                "name": f"{kills} kills of training, {given.processes} process(es): identical bytes",
                "goal": "all runs",
                "measured": f"{sum(row['identical'] for row in rows)} of {len(rows)} runs",
                "met": identical,
            }
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    name = "training_kills_quick" if given.quick else f"training_kills_{given.processes}"
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(report["targets"])


if __name__ == "__main__":
    main()
