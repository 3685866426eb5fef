"""How fast is a step of distillation? Ours against a plain loop and TRL's losses, whole steps and the loss alone.

A teacher of 25M parameters and a student of 10M beside their embeddings, 4 sequences of 256 tokens a step, bf16
autocast on the processor, forward KL, vocabularies of 8,192, 32,768 and 131,072. Every method has a process of its own,
and they take a step each in turn: what is compared is the median over turns of the ratio of two steps of the same turn,
so a machine that is slow for a while is slow for both. TRL's GKD loss reads bf16 logits; TRL's distillation loss
computes them in fp32, so only it is as exact as ours. *ours, TRL … head* is our loop with TRL's loss in it. The bound
is a step that does nothing but its matrix products in bf16, the backbones and the optimizer; it takes its turn like the
methods.

    python tests/benchmarks/distill_speed.py [--quick] [--vocabularies 8192,131072] [--turns 9]

TRL is a rival only where it is installed: pip install trl==1.16.0
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tables
from distilling import jobs, parts, readme, turns

from compress.environment import environment

RESULTS = Path(__file__).parent / "results"
VOCABULARIES = (8_192, 32_768, 131_072)
TOGETHER = (
    (jobs.BOUND, "plain", "TRL GKD", "TRL distillation", "ours", "ours, cached"),
    ("ours, TRL GKD head", "ours, TRL distillation head", "ours"),
)
"""Methods that take turns: whole loops, and heads in our loop. All at once would not fit into this memory."""
Row = dict[str, Any]


def main() -> None:
    """Measure, print the table, write the results."""
    given = _arguments()
    if given.job and given.job[0] == "step":
        jobs.step_when_asked(given.job[2], int(given.job[1]))
        return
    if given.job:
        print(json.dumps(_run(given.job)))
        return
    rows: list[Row] = []
    vocabularies = [int(each) for each in given.vocabularies.split(",")]
    for vocabulary in vocabularies:
        rows += _measure(vocabulary, given.turns)
    targets = _targets(rows, vocabularies)
    for target in targets:
        print(
            f"{'met    ' if target['met'] else 'not met'} {target['name']}: {target['measured']} ({target['goal']})"
        )
    _write(rows, targets, given.quick)
    if not given.quick:
        tables.put(RESULTS.parents[2] / "README.md", readme.NAME, readme.table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one vocabulary, three turns")
    parser.add_argument("--vocabularies", default=",".join(map(str, VOCABULARIES)))
    parser.add_argument("--turns", type=int, default=9, help="of a step by each method")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.vocabularies, given.turns = "32768", 3
    return given


def _run(job: list[str]) -> Row:
    kind, vocabulary = job[0], int(job[1])
    if kind == "loss_memory":
        return jobs.loss_memory(job[2], vocabulary)
    return {"gradient_errors": jobs.gradient_errors, "rates": jobs.rates}[kind](vocabulary)


def _measure(vocabulary: int, count: int) -> list[Row]:
    has_trl = importlib.util.find_spec("trl") is not None
    rows = [_row("rates", "rates", vocabulary)]
    for turn, together in enumerate(TOGETHER):
        methods = [name for name in together if has_trl or "TRL" not in name]
        for name, found in turns.take_turns(__file__, methods, vocabulary, count).items():
            speed = parts.B * parts.T / statistics.median(found["seconds"])
            row = {
                "name": name,
                "kind": "steps",
                "vocabulary": vocabulary,
                "turn": turn,
                "tokens_per_second": speed,
            }
            print({**row, "peak_bytes": found["peak_bytes"]}, flush=True)
            rows.append(row | found)
    rows += [
        _row(name, "loss_memory", vocabulary, name) for name in jobs.LOSSES if has_trl or "TRL" not in name
    ]
    rows.append(_row("gradient error", "gradient_errors", vocabulary))
    return rows


def _row(name: str, kind: str, vocabulary: int, *more: str) -> Row:
    """Run a job in a process of its own; return its figures."""
    command = [sys.executable, __file__, "--job", kind, str(vocabulary), *more]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = {"name": name, "kind": kind, "vocabulary": vocabulary, **json.loads(done.stdout.splitlines()[-1])}
    print(
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()},
        flush=True,
    )
    return row


def _targets(rows: list[Row], vocabularies: list[int]) -> list[Row]:
    found: list[Row] = []
    for vocabulary in vocabularies:
        here = [row for row in rows if row["vocabulary"] == vocabulary]
        memory = {row["name"]: row["loss_bytes"] for row in here if row["kind"] == "loss_memory"}
        errors = next(row for row in here if row["kind"] == "gradient_errors")
        goal = {32_768: 1.15, 131_072: 1.3}.get(vocabulary, 1.0)
        place = f"{vocabulary:,} ids"
        for turn in range(len(TOGETHER)):
            together = {
                row["name"]: row["seconds"] for row in here if row["kind"] == "steps" and row["turn"] == turn
            }
            for rival in together:
                if "ours, cached" in together and rival.startswith("TRL"):
                    ratios = _ratios(together, rival, "ours, cached")
                    found.append(_target(f"{place}: speed, cached / {rival}", ratios, 2.0))
                if rival not in ("ours", "ours, cached", jobs.BOUND):
                    found.append(
                        _target(f"{place}: speed, ours / {rival}", _ratios(together, rival, "ours"), goal)
                    )
                if rival == jobs.BOUND:
                    found.append(
                        _target(f"{place}: share of the bound", _ratios(together, rival, "ours"), 0.7)
                    )
        found.append(_target(f"{place}: gradient error in the logits", [errors["ours"]], 0.01, most=True))
        for rival in ("TRL GKD", "TRL distillation"):
            if rival in memory:
                share = memory["ours"] / memory[rival]
                found.append(
                    _target(f"{place}: peak memory of the loss, ours / {rival}", [share], 0.4, most=True)
                )
    return found


def _ratios(seconds: dict[str, list[float]], slower: str, faster: str) -> list[float]:
    return [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]


def _target(name: str, figures: list[float], goal: float, *, most: bool = False) -> Row:
    """Compare the median with a goal; of several figures, tell their range."""
    measured = statistics.median(figures)
    found = {
        "name": name,
        "goal": f"{'at most' if most else 'at least'} {goal:g}",
        "measured": round(measured, 4),
        "met": measured <= goal if most else measured >= goal,
    }
    return found if len(figures) == 1 else found | {"range": [round(min(figures), 4), round(max(figures), 4)]}


def _write(rows: list[Row], targets: list[Row], quick: bool) -> None:
    facts = environment()
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: facts[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {
            name: version(name) for name in ("torch", "transformers", "trl") if importlib.util.find_spec(name)
        },
        "command": " ".join(["python", "tests/benchmarks/distill_speed.py", *sys.argv[1:]]),
        "rows": rows,
        "targets": targets,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "distill_speed_quick.json" if quick else "distill_speed.json"
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
