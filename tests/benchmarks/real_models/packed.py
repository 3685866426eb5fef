"""A real model's texts as rows of its ids: calibration rows a seed, recovery rows for all.

What a seed chooses lies in a folder of its own, so that every method reads those rows and no others.
"""

import json
from pathlib import Path

from pruning.steps import run_step

from compress.data.tokens import PackedTokens, order

from .texts import write_splits


def write_rows(model: Path, texts: Path, work: Path, length: int) -> None:
    """Pack calibration and recovery text into ``calibration`` and ``recovery``, once for these pages."""
    made_of, done = json.dumps([str(model.resolve()), str(texts.resolve()), length]), work / "packed.json"
    if done.is_file() and done.read_text(encoding="utf-8") == made_of:
        return
    for split, path in write_splits(texts, work).items():
        settings = {"source": "text", "settings": {"paths": [str(path)]}, "sequence_length": length}
        run_step("data.pack", model, work / split, settings, seed=0)
    done.write_text(made_of, encoding="utf-8")


def with_vocabulary(model: Path, count: int, corpus: Path, folder: Path) -> Path:
    """Write the model with only the ids that a packed corpus uses most, once; return its folder."""
    if not folder.is_dir():
        settings, new = {"target": {"tokens": count}}, folder.with_name(f"{folder.name}.new")
        run_step("prune.vocab", model, new, settings, seed=0, inputs={"corpus": corpus})
        new.replace(folder)
    return folder


def choose_calibration(work: Path, seed: int, count: int) -> None:
    """Write the calibration rows of a seed into ``calibration-SEED``."""
    folder = work / f"calibration-{seed}"
    packed = PackedTokens.open(work / "calibration")
    if packed.num_sequences < count:
        raise SystemExit(
            f"the texts make {packed.num_sequences} calibration rows where {count} are wanted: add pages"
        )
    rows_NT = packed.batch(order(packed.num_sequences, seed, epoch=0)[:count].tolist())
    folder.mkdir(exist_ok=True)
    (folder / "tokens.bin").write_bytes(rows_NT.numpy().astype("<u4").tobytes())
    facts = {"num_sequences": count, "sequence_length": packed.sequence_length, "dtype": "<u4"}
    (folder / "tokens.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
