"""Time and memory to prune 1B- and 8B-shaped checkpoints from disk, on the CPU.

    python tests/benchmarks/pruning_scale.py [--quick]

Random bf16 weights in the shapes of Llama-3.2-1B and Llama-3.1-8B, in shards of 5 GB as hubs have them. Every figure is
taken in a process of its own. *Slicing* cuts the checkpoint to about half (hidden, FFN, KV groups) and is timed in turn
with copying the same files, cold caches before each. *Streamed pruning* scores, refits and slices with one layer
resident; at 8B width four layers stand for thirty-two, because its memory does not depend on how many there are and
its time is a layer's times their number. Memory is the peak of anonymous pages (`RssAnon`, sampled every 10 ms): what
a process holds beyond files the system may drop. ``--quick``: the 1B shape only, with fewer tokens.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.environment import environment
from compress.models.layout import Layout, layout
from compress.models.shards import write_shards
from compress.records import TensorSpec

RESULTS = Path(__file__).parent / "results"
SHARD_BYTES = 5 * 10**9
COMMON = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "dtype": "bfloat16",
          "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "1B": COMMON | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "8B": COMMON | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
                    "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
SHAPES["8B, 4 layers"] = SHAPES["8B"] | {"num_hidden_layers": 4}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the 1B shape only, fewer tokens")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (70 GB; deleted afterwards)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(JOBS[arguments.job](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), arguments.quick)
    write(rows, arguments.quick)


def measure(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Return every raw figure."""
    rows: list[dict[str, Any]] = []
    for name in ["1B"] if quick else ["1B", "8B"]:
        checkpoint = make_checkpoint(folder / "checkpoint", SHAPES[name])
        for turn in range(2 if name == "1B" else 1):
            for job in ("copy", "slice"):
                rows.append({"shape": name, "turn": turn, "job": job} | in_a_process(job, folder))
                print(rows[-1], flush=True)
        shutil.rmtree(checkpoint)
    for name, tokens in [("1B", 2048)] if quick else [("8B, 4 layers", 4096)]:
        make_checkpoint(folder / "checkpoint", SHAPES[name])
        make_tokens(folder / "calibration", tokens)
        row = {"shape": name, "turn": 0, "job": "prune", "tokens": tokens} | in_a_process("prune", folder)
        rows.append(row)
        print(row, flush=True)
        shutil.rmtree(folder / "checkpoint")
    return rows


def in_a_process(job: str, folder: Path) -> dict[str, Any]:
    """Run a job on the folder's checkpoint in a new process, files out of the cache; return what it measured."""
    drop_from_cache(folder / "checkpoint")
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(folder / "result")
    return measured


def watched(work: Callable[[], object]) -> dict[str, Any]:
    """Return seconds, until all is on the disk, and the peak of anonymous memory, imports included."""
    peak, finished = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not finished.wait(0.01):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    try:
        work()
        os.sync()
    finally:
        finished.set()
        sampler.join()
    return {"seconds": time.monotonic() - started, "peak_anonymous_bytes": peak}


def copy(folder: Path) -> dict[str, Any]:
    """Copy the checkpoint's files."""
    return watched(lambda: shutil.copytree(folder / "checkpoint", folder / "result"))


def slice_only(folder: Path) -> dict[str, Any]:
    """Cut the checkpoint to half, as `prune.width` does once it knows what stays."""
    from compress.prune.kept import Kept, top
    from compress.prune.slicing import write_pruned
    from compress.prune.target import Target, shape_for

    before = layout(json.loads((folder / "checkpoint/config.json").read_text()))
    after = shape_for(Target(params="50%"), before, ("hidden", "ffn", "kv_groups"), {})
    chance = torch.Generator().manual_seed(0)

    def some(count: int, *shape: int) -> torch.Tensor:
        return top(torch.rand(*shape, generator=chance), count)

    units = {
        "hidden": some(after.hidden, before.hidden),
        "ffn": some(after.ffn, before.num_layers, before.ffn),
        "kv_groups": some(after.num_kv_heads, before.num_layers, before.num_kv_heads),
    }
    kept = Kept(range(before.num_layers), units)  # type: ignore[arg-type]
    (folder / "result").mkdir()
    return watched(lambda: write_pruned(folder / "checkpoint", folder / "result", before, after, kept))


def prune(folder: Path) -> dict[str, Any]:
    """Score, refit and slice to half, streamed, with default settings."""
    from pruning.steps import run_step

    settings = {"target": {"params": "50%"}, "memory": "stream"}
    calibration = {"calibration": folder / "calibration"}
    return watched(
        lambda: run_step(
            "prune.width", folder / "checkpoint", folder / "result", settings, seed=0, inputs=calibration
        )
    )


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {"copy": copy, "slice": slice_only, "prune": prune}


def make_checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """Write random bf16 weights of a shape: small for matrices, one for norms."""
    folder.mkdir(parents=True)
    shape: Layout = layout(config)
    shards: dict[str, dict[str, TensorSpec]] = {}
    size = 0
    for name, sizes in shape.shapes().items():
        spec = TensorSpec(shape=sizes, dtype="BF16")
        number = size // SHARD_BYTES
        shards.setdefault(f"model-{number:05d}.safetensors", {})[name] = spec
        size += spec.num_bytes
    shapes = shape.shapes()
    chance = torch.Generator().manual_seed(0)

    def weights(name: str) -> memoryview:
        sizes = shapes[name]
        drawn = torch.empty(sizes, dtype=torch.bfloat16)
        drawn = drawn.fill_(1) if len(sizes) == 1 else drawn.normal_(0, 0.02, generator=chance)
        data: memoryview = drawn.reshape(-1).view(torch.uint8).numpy().data
        return data

    renamed = {name.replace("model-00000", "model"): tensors for name, tensors in shards.items()}
    write_shards(folder, renamed if len(renamed) == 1 else shards, weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_tokens(folder: Path, count: int, length: int = 512) -> None:
    """Write random token ids, as the engine's `tokens` artifacts are."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = torch.randint(0, 128256, (count // length, length), generator=torch.Generator().manual_seed(1))
    ids.numpy().astype("<u4").tofile(folder / "tokens.bin")
    facts = {"num_sequences": len(ids), "sequence_length": length, "dtype": "<u4"}
    (folder / "tokens.json").write_text(json.dumps(facts))


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages, so that every reading comes from the disk."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write(rows: list[dict[str, Any]], quick: bool) -> None:
    """Print the table and write the result file."""
    targets = []
    for shape in dict.fromkeys(row["shape"] for row in rows if row["job"] == "slice"):
        by_job = {
            job: [row["seconds"] for row in rows if (row["shape"], row["job"]) == (shape, job)]
            for job in ("copy", "slice")
        }
        ratio = statistics.median(s / c for s, c in zip(by_job["slice"], by_job["copy"], strict=True))
        targets.append(
            {"name": f"slicing {shape} / copying it", "goal": 2.0, "measured": ratio, "met": ratio <= 2}
        )
    for shape in dict.fromkeys(row["shape"] for row in rows):
        for job in ("slice", "prune"):
            peaks = [r["peak_anonymous_bytes"] for r in rows if (r["shape"], r["job"]) == (shape, job)]
            if peaks:
                peak = max(peaks) / GIB
                name = f"peak memory, {job} {shape} (GiB)"
                targets.append({"name": name, "goal": 6.0, "measured": peak, "met": peak <= 6})
    for target in targets:
        print(f"{target['name']:40} {target['measured']:8.2f}  (goal: at most {target['goal']:g})")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": environment(),
        "versions": {"torch": torch.__version__},
        "command": "python tests/benchmarks/pruning_scale.py" + (" --quick" if quick else ""),
        "rows": rows,
        "targets": targets,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "pruning_scale_quick.json" if quick else "pruning_scale.json"
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
