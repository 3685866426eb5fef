"""Whole pipelines on the card, as a user runs them: resumed after kill -9, and by a team."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_minutes.scale import Scale, row

PIPELINE = """
version: 1
name: card
model:
  tokenizer: bytes
  config:
    {{model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: {hidden},
     intermediate_size: {inner}, num_hidden_layers: {layers}, num_attention_heads: 4, num_key_value_heads: 2,
     head_dim: {head_dim}, max_position_embeddings: 256}}
data:
  calibration: {{source: demo, split: calibration, sequence_length: 128, samples: 32}}
  recovery: {{source: demo, sequence_length: 128, tokens: {packed}}}
  heldout: {{source: demo, split: heldout, sequence_length: 128, samples: 8}}
evaluate: {{tasks: [world_facts], samples: 16}}
profile: {{prompt_tokens: [16], new_tokens: 8, repeats: 3}}
steps:
  - {{name: narrow, measure: [], use: prune.width, target: {{params: 60%}}, align: {{hidden: 32, ffn: 32}}}}
  - {{name: recover, measure: [], use: distill, tokens: {tokens}, batch_tokens: 2048, checkpoint_seconds: 0.5,
     held_out: heldout, held_out_rows: 8, tasks: [world_facts], task_samples: 8, stop_after: 100{launch}}}
  - {{name: int4, use: quantize.rtn, bits: 4, group_size: 32}}
"""

FULL = {"hidden": 256, "inner": 768, "layers": 4, "head_dim": 64, "packed": "200k"}
TINY = {"hidden": 64, "inner": 192, "layers": 2, "head_dim": 16, "packed": "40k"}


def pipeline(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield whether a run that is killed twice ends in the bytes of one that is not."""
    tokens = "200k" if scale.is_full else "20k"
    yield from _compared(scale, tokens, launch="", kills=2 if scale.is_full else 1)


def team(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield the same for a team of one process a card, which shards and gathers by NCCL."""
    tokens = "100k" if scale.is_full else "8k"
    yield from _compared(
        scale, tokens, launch=", launch: {processes: 1}, micro_batch: 4", kills=1, is_exact=not scale.is_full
    )


def _compared(
    scale: Scale, tokens: str, launch: str, kills: int, is_exact: bool = True
) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "card.yaml"
        sizes = FULL if scale.is_full else TINY
        file.write_text(PIPELINE.format(tokens=tokens, launch=launch, **sizes), encoding="utf-8")
        started = time.monotonic()
        _finish(file, folder / "whole")
        yield from row("whole pipeline", time.monotonic() - started, "s")
        killed = 0
        for _ in range(kills):
            killed += _kill(file, folder / "killed")
        _finish(file, folder / "killed")
        whole, again = (_payload(folder / store) for store in ("whole", "killed"))
        differing = sorted(key for key in whole if again.get(key) != whole[key])
        note = f"{len(whole)} weight files; killed {killed} times; {', '.join(differing)}"
        # A team on cards is not held to one order of sums, and says so.
        goal = {"goal": 0} if is_exact else {}
        yield from row(
            "results that differ after kills", len(differing), "files", n=len(whole), note=note, **goal
        )


def _command(file: Path, store: Path) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "COMPRESS_HOME": str(store), "PYTHONPATH": str(Path(__file__).parents[3])}
    return [sys.executable, "-m", "compress", "run", str(file)], environment


def _finish(file: Path, store: Path) -> None:
    command, environment = _command(file, store)
    done = subprocess.run(
        command, env=environment, cwd=file.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def _kill(file: Path, store: Path) -> bool:
    """Kill the run's whole process group once its training has kept something; return whether it was still running."""
    command, environment = _command(file, store)
    with subprocess.Popen(
        command,
        env=environment,
        cwd=file.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        while run.poll() is None and not _has_checkpoint(store):
            time.sleep(0.1)
        time.sleep(1.0)
        alive = run.poll() is None
        if alive:
            os.killpg(run.pid, signal.SIGKILL)
    time.sleep(2.0)  # workers see that their driver is gone
    return alive


def _has_checkpoint(store: Path) -> bool:
    """Whether work is saved anywhere. What the run moves meanwhile is passed over."""
    names = (name for _, folders, files in os.walk(store) for name in (*folders, *files))
    return any(name == "checkpoint.pt" or name.startswith("sharded-") for name in names)


def _payload(store: Path) -> dict[str, bytes]:
    """Return the weights of every result, by key and file."""
    return {
        f"{file.parent.name[:8]}/{file.name}": file.read_bytes()
        for file in sorted(store.rglob("*.safetensors"))
        if (file.parent / "COMMIT").exists()
    }
