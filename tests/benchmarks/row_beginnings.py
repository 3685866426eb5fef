"""What it brings that rows begin as the model was trained to read them: the same steps with BOS and without.

    python tests/benchmarks/row_beginnings.py FOLDER [--data FOLDER] [--texts FOLDER] [--tokens 40k]

FOLDER holds ``gemma-3-270m``, a Hugging Face checkpoint; the data's folder (by default the same) has
``wikitext2_valid.txt``, the texts' folder pages to learn from as well. Its vocabulary is first cut to the 32,000 ids
the texts use most. Then, on rows of the same text:

- the divergence of plain INT4 (RTN) is measured on held-out rows that begin with BOS, and on rows that do not;
- half of the FFN's neurons are pruned, calibrated on rows with BOS and on rows without, and both are distilled on rows
  of their kind. All are judged on rows that begin with BOS, as the model is used.

Judged by a plain transformers loop (`pruning/heldout.py`). Written at the end is ``results/row_beginnings.json``; the
whole takes about 20 minutes on two cores.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pruning.heldout import Heldout, heldout_rows, load
from pruning.steps import run_step
from real_models import stand_in
from real_models.packed import choose_calibration, with_vocabulary, write_rows
from real_models.texts import write_splits
from scipy.stats import bootstrap

from compress.data.tokens import PackedTokens
from compress.environment import environment
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.quantities import parse_count

HERE = Path(__file__).parent
NAME = "gemma-3-270m"
HELD_OUT = "wikitext2_valid.txt"
SEED = 1
VOCABULARY = 32_000
ROWS, LENGTH, CALIBRATION_ROWS = 24, 256, 64
KINDS = {True: "with BOS", False: "without BOS"}


def main() -> None:
    """Prepare, measure, write the results."""
    given = _options()
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            given.folder, given.work, given.tokens = Path(folder), Path(folder) / "work", 8192
            stand_in.make(given.folder, NAME, HELD_OUT)
            print(json.dumps(measured(given, rows=4, length=128, calibration_rows=8), indent=1))
        return
    if given.folder is None:
        sys.exit("which FOLDER has the model? See --help; --quick needs none")
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {key: environment()[key] for key in ("python", "torch", "transformers")},
        "command": f"python tests/benchmarks/row_beginnings.py FOLDER --tokens {given.tokens}",
        **measured(given, ROWS, LENGTH, CALIBRATION_ROWS),
    }
    (HERE / "results" / "row_beginnings.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )


def measured(given: argparse.Namespace, rows: int, length: int, calibration_rows: int) -> dict[str, Any]:
    """Return the figures of all that is compared."""
    model, data, work = given.folder / NAME, given.data or given.folder, given.work
    whole = work / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    texts = write_splits(data / HELD_OUT, given.texts, work)
    write_rows(model, texts, whole, length)
    if read_spec(model).config["vocab_size"] > VOCABULARY:
        model = with_vocabulary(model, VOCABULARY, whole / "corpus", work / NAME)
    rows_NT = heldout_rows(texts["heldout"], model, rows, length)
    judged = {begins: Heldout(load(model), rows_NT if begins else rows_NT[:, 1:]) for begins in KINDS}
    folder = work / "int4"
    run_step("quantize.rtn", model, folder, {"bits": 4}, seed=SEED)
    quantized = load_model(folder, dtype=torch.float32)
    quantized(rows_NT[:1, :2])  # integers become weights when the model as a whole is first called
    found = [
        _row("INT4, divergence measured on rows", begins, judged[begins].excess(quantized).kl)
        for begins in KINDS
    ]
    packed = work / KINDS[True].replace(" ", "-")
    packed.mkdir(exist_ok=True)
    write_rows(model, texts, packed, length)
    without_bos(packed, work / KINDS[False].replace(" ", "-"), int(rows_NT[0, 0]))
    for begins in KINDS:
        found += _pruned(
            model,
            work / KINDS[begins].replace(" ", "-"),
            judged[True],
            begins,
            calibration_rows,
            given.tokens,
        )
    return {"rows": found}


def without_bos(packed: Path, folder: Path, bos: int) -> None:
    """Write the rows of every split once more: the same text in rows of that length, without BOS."""
    for split in ("calibration", "recovery"):
        rows = PackedTokens.open(packed / split)
        ids_N = rows.batch(list(range(rows.num_sequences))).flatten()
        ids_N = ids_N[ids_N != bos]
        count = len(ids_N) // rows.sequence_length
        (folder / split).mkdir(parents=True, exist_ok=True)
        kept = ids_N[: count * rows.sequence_length].numpy().astype("<u4")
        (folder / split / "tokens.bin").write_bytes(kept.tobytes())
        facts = {"num_sequences": count, "sequence_length": rows.sequence_length, "dtype": "<u4"}
        (folder / split / "tokens.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _pruned(
    model: Path, packed: Path, judged: Heldout, begins: bool, calibration_rows: int, tokens: int
) -> list[dict[str, Any]]:
    """Prune by one kind of rows, distil on that kind; return what is lost before and after."""
    choose_calibration(packed, "calibration", SEED, calibration_rows)
    half = read_spec(model).config["intermediate_size"] // 2
    pruned, recovered = packed / "pruned", packed / "recovered"
    inputs = {"calibration": packed / f"calibration-{SEED}"}
    settings = {"target": {"intermediate_size": half}}
    run_step("prune.width", model, pruned, settings, seed=SEED, inputs=inputs)
    found = [_row("half of the FFN pruned by rows", begins, judged.excess(load(pruned)).loss)]
    settings = {"tokens": tokens, "batch_tokens": 1024, "learning_rate": 1e-4}
    inputs = {"teacher": model, "data": packed / "recovery"}
    run_step("distill", pruned, recovered, settings, seed=SEED, inputs=inputs, say=KINDS[begins])
    found.append(
        _row(f"and distilled on {tokens:,} tokens of rows", begins, judged.excess(load(recovered)).loss)
    )
    return found


def _row(what: str, begins: bool, values: list[float]) -> dict[str, Any]:
    """Return a mean over held-out rows with its bootstrap interval, in nats a token."""
    interval = bootstrap((values,), mean, vectorized=False, rng=0).confidence_interval
    row = {
        "what": what,
        "rows": KINDS[begins],
        "mean": mean(values),
        "low": interval.low,
        "high": interval.high,
    }
    print(
        f"{what} {KINDS[begins]}: {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}] nats/token",
        flush=True,
    )
    return {**row, "unit": "nats/token", "n": len(values)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help=f"holds {NAME}")
    parser.add_argument("--data", type=Path, help=f"holds {HELD_OUT}")
    parser.add_argument("--texts", type=Path, help="pages of another kind")
    parser.add_argument("--tokens", type=parse_count, default=40_000, help="to distil on")
    parser.add_argument(
        "--work", type=Path, default=Path("row-beginnings"), help="where files are put meanwhile"
    )
    parser.add_argument("--quick", action="store_true", help="a minute, a tiny model, no FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
