"""A real model's texts as rows of its ids: calibration rows a seed, recovery rows for all.

What a seed chooses lies in a folder of its own, so that every method reads those rows and no others.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pruning.steps import run_step

from compress.data.tokens import PackedTokens, order


def write_rows(model: Path, texts: Mapping[str, Path], work: Path, length: int) -> None:
    """Pack the texts of every split into a folder of its name, and all to learn from into ``corpus``, once."""
    rows = {split: [path] for split, path in texts.items() if split != "heldout"}
    rows["corpus"] = [path for split, path in texts.items() if split in ("recovery", "pages")]
    sizes = {split: [path.stat().st_size for path in paths] for split, paths in rows.items()}
    made_of, done = json.dumps([str(model.resolve()), sizes, length]), work / "packed.json"
    if done.is_file() and done.read_text(encoding="utf-8") == made_of:
        return
    for split, paths in rows.items():
        settings = {
            "source": "text",
            "settings": {"paths": list(map(str, paths))},
            "sequence_length": length,
        }
        run_step("data.pack", model, work / split, settings, seed=0)
    done.write_text(made_of, encoding="utf-8")


def with_vocabulary(model: Path, count: int, corpus: Path, folder: Path) -> Path:
    """Write the model with only the ids that a packed corpus uses most, once; return its folder."""
    if not folder.is_dir():
        settings, new = {"target": {"tokens": count}}, folder.with_name(f"{folder.name}.new")
        run_step("prune.vocab", model, new, settings, seed=0, inputs={"corpus": corpus})
        new.replace(folder)
    return folder


def choose_calibration(work: Path, split: str, seed: int, count: int) -> None:
    """Write the calibration rows of a seed, from a split, into ``calibration-SEED``."""
    folder = work / f"calibration-{seed}"
    packed = PackedTokens.open(work / split)
    if packed.num_sequences < count:
        raise SystemExit(
            f"the texts make {packed.num_sequences} calibration rows where {count} are wanted: add pages"
        )
    rows_NT = packed.batch(order(packed.num_sequences, seed, epoch=0)[:count].tolist())
    folder.mkdir(exist_ok=True)
    (folder / "tokens.bin").write_bytes(rows_NT.numpy().astype("<u4").tobytes())
    facts = {"num_sequences": count, "sequence_length": packed.sequence_length, "dtype": "<u4"}
    (folder / "tokens.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
