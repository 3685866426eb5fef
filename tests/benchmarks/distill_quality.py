"""How well does a pruned model recover, by tokens? Distillation beside what others do, at the same tokens.

Two teachers (`pruning/teachers.py`), each cut once to 50 % by `prune` with its defaults, recovered by

    ours          `distill`, forward KL, the teacher beside the student
    ours, cached  the same with `cache_teacher: true`
    labels        `train`: cross-entropy of the text alone
    top-k         forward KL to the teacher's 32 likeliest tokens, renormalized: the tail is forgotten
    from scratch  `distill` as ours, but the pruned shape starts with random weights

The seed chooses the order of the text and what is drawn, the cut is the same. Every method has the highest learning
rate that is best for it: found by `sweep` on `code`, with seed 0 and 20,480 tokens, by the loss on other held-out
documents than those reported, and then used for every teacher, budget and seed. `ours, cached` takes the rate of
`ours`. Results are kept, so a stopped run goes on.

    python tests/benchmarks/distill_quality.py [run|sweep|table]
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilling import quality, quality_comparing
from distilling.quality import Point
from pruning.teachers import TEACHERS

from compress.environment import environment

RESULTS = Path(__file__).parent / "results"
NAMES = ("code", "prose")
BUDGETS = (20_480, 40_960, 81_920)
SEEDS = (1, 2)
SWEPT = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SWEEP_TOKENS, SWEEP_SEED = BUDGETS[0], 0
METHODS = ("ours", "ours, cached", "labels", "top-k", "from scratch")
RATE_OF = {"ours, cached": "ours"}
"""Methods that take the learning rate of another."""


def main() -> None:
    """Measure what is missing, print the table, write the results."""
    part = _arguments().part
    torch.set_num_threads(1)
    for name in NAMES:
        if not TEACHERS[name].exists:
            raise SystemExit(f"no teacher {name}: python tests/benchmarks/pruning_quality.py teachers")
    if part != "table":
        _measure(_swept())
    rates = _rates()
    _save_sweep(rates)
    if part == "sweep":
        return
    plan = _plan(rates)
    if part == "run":
        _measure(plan)
    _report(plan, rates)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="run", choices=("run", "sweep", "table"))
    return parser.parse_args()


def _plan(rates: dict[str, float]) -> list[Point]:
    """Return all points, seed by seed and budget by budget: a stopped run has compared all methods."""
    return [
        Point(seed, tokens, name, method, rates[RATE_OF.get(method, method)])
        for seed in SEEDS
        for tokens in BUDGETS
        for name in NAMES
        for method in METHODS
    ]


def _swept() -> list[Point]:
    return [
        Point(SWEEP_SEED, SWEEP_TOKENS, "code", method, rate, "sweep")
        for method in METHODS
        if method not in RATE_OF
        for rate in SWEPT
    ]


def _rates() -> dict[str, float]:
    """Return the rate of the lowest loss of each swept method. Stops where the sweep is not complete."""
    best: dict[str, tuple[float, float]] = {}
    for point in _swept():
        if (result := point.result) is None:
            raise SystemExit(
                "the learning rates are not found yet: python tests/benchmarks/distill_quality.py sweep"
            )
        reached = float(np.mean(result["loss"])), point.learning_rate
        best[point.method] = min(reached, best.get(point.method, reached))
    return {method: rate for method, (_, rate) in best.items()}


def _measure(points: list[Point]) -> None:
    for number, point in enumerate(points, start=1):
        result = point.result or quality.measure(point)
        loss, kl = (float(np.mean(result[figure])) for figure in ("loss", "kl"))
        print(
            f"{number:3}/{len(points)} {point.teacher:6} seed {point.seed} {point.tokens:7,} {point.method:13} "
            f"lr {point.learning_rate:.0e}  loss {loss:.4f}  KL {kl:.4f}  {result['seconds']:.0f} s",
            flush=True,
        )


def _save_sweep(rates: dict[str, float]) -> None:
    rows = [
        {
            "method": point.method,
            "learning_rate": point.learning_rate,
            "loss": round(float(np.mean(result["loss"])), 5),
            "unit": "nats/token",
            "n": quality.DOCUMENTS,
        }
        for point in _swept()
        if (result := point.result)
    ]
    _save("distill_quality_sweep.json", rows, [], rates)


def _report(plan: list[Point], rates: dict[str, float]) -> None:
    found = {point: result for point in plan if (result := point.result)}
    starts = {name: quality.start_figures(name) for name in NAMES}
    for line in quality_comparing.table(found, starts):
        print(line)
    compared = quality_comparing.targets(found)
    for target in compared:
        print(f"{'met    ' if target['met'] else 'not met'} {target['name']}: {target['measured']}")
    done = f"{len(found)} of {len(plan)}"
    print(f"{done} points")
    rows = list(quality_comparing.raw_rows(found, starts))
    _save("distill_quality.json", rows, compared, rates, points=done)


def _save(
    name: str,
    rows: list[dict[str, Any]],
    targets: list[dict[str, Any]],
    rates: dict[str, float],
    **more: str,
) -> None:
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {package: version(package) for package in ("torch", "transformers", "numpy")},
        "command": " ".join(["python", "tests/benchmarks/distill_quality.py", *sys.argv[1:]]),
        "plan": {"teachers": NAMES, "tokens": BUDGETS, "seeds": SEEDS, "kept": quality.KEPT, "rates": rates},
        **more,
        "own_code": quality.own_version(),
    }
    text = json.dumps({**facts, "rows": rows, "targets": targets}, indent=1)
    (RESULTS / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
