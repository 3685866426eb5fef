"""Does `compress` prune better than its rivals? Loss and divergence at equal size, before and after recovery.

Four teachers (`pruning/teachers.py`: two for development, two never tuned on), 75, 50 and 35 % of the parameters
kept, ours against Minitron's recipe with its search, block-influence depth, weight magnitude, random units and
torch-pruning's own pruner, several seeds. The seed chooses the calibration text, the order of the recovery and the
random units. Every result is kept, so a stopped run goes on, and only what changed is measured again.

    python tests/benchmarks/pruning_quality.py [teachers|rivals|ours|table] [--teachers dev|held-out|all|NAME] [--quick]

torch-pruning is a rival only where it is installed: pip install torch-pruning==1.6.1
"""

import argparse
import json
import os
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tables
from pruning import comparing, points, readme, teachers
from pruning.points import Plan, Point
from pruning.rivals import METHODS, OURS
from pruning.teachers import TEACHERS

from compress.environment import environment

HERE = Path(__file__).parent
BUDGETS = (0.75, 0.50, 0.35)
SEEDS = {"ours": (1, 2, 3), "minitron": (1, 2, 3), "minitron-30": (1,)}
"""Most for the two that the targets compare, `FEWER_SEEDS` for those not named."""
FEWER_SEEDS = (1, 2)
SLOW = ("minitron-30", "torch-pruning-example")
"""Not in the quick run."""
QUICK = Plan(documents=24, tokens=20_480)


def main() -> None:
    """Make the teachers, measure what is missing, print the table, write the results."""
    given = _arguments()
    names = _teachers(given.teachers)
    if given.only:
        teachers.make(TEACHERS[given.only])
        return
    teachers.make_all(["code"] if given.quick else names, Path(__file__))
    if given.part == "teachers":
        return
    plan, wanted = (QUICK, _quick()) if given.quick else (Plan(), _full(names))
    if given.part != "table":
        chosen = [p for p in wanted if given.part == "all" or (p.method in OURS) == (given.part == "ours")]
        points.measure_all(chosen, plan, given.workers)
    _report(wanted, plan, given.quick)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", nargs="?", default="all", choices=("all", "teachers", "rivals", "ours", "table")
    )
    parser.add_argument("--teachers", default="all", help="dev, held-out, all, or one by name")
    parser.add_argument("--quick", action="store_true", help="one teacher, budget and seed, short recovery")
    parser.add_argument("--workers", type=int, default=2, help="points measured at a time, one thread each")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def _teachers(which: str) -> list[str]:
    groups = {
        "all": list(TEACHERS),
        "dev": [name for name, teacher in TEACHERS.items() if not teacher.held_out],
        "held-out": [name for name, teacher in TEACHERS.items() if teacher.held_out],
        **{name: [name] for name in TEACHERS},
    }
    if which not in groups:
        raise SystemExit(f"--teachers {which}: allowed are {', '.join(groups)}")
    return groups[which]


def _full(names: list[str]) -> list[Point]:
    found = [
        Point(name, method, budget, seed)
        for name in names
        for budget in BUDGETS
        for method in METHODS
        for seed in SEEDS.get(method, FEWER_SEEDS)
        if method != "torch-pruning-example"
    ]
    # What the published example does depends on nothing but the architecture: once for each.
    return found + [Point(name, "torch-pruning-example", BUDGETS[0], 1) for name in names]


def _quick() -> list[Point]:
    return [Point("code", method, 0.5, 1) for method in METHODS if method not in SLOW]


def _report(wanted: list[Point], plan: Plan, quick: bool) -> None:
    found = dict(points.results(wanted, plan))
    names = list(dict.fromkeys(point.teacher for point in found))
    for line in comparing.table(found, BUDGETS, names, plan):
        print(line)
    compared = comparing.targets(found, BUDGETS, names, plan)
    for target in compared:
        print(f"{'met    ' if target['met'] else 'not met'} {target['name']}: {target['measured']}")
    rows = list(comparing.raw_rows(found, plan))
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": _versions(),
        "command": " ".join(["python", "tests/benchmarks/pruning_quality.py", *sys.argv[1:]]),
        "plan": vars(plan),
        "own_code": points.own_version(),
    }
    name = "pruning_quality_quick.json" if quick else "pruning_quality.json"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / name).write_text(_json(facts, rows, compared), encoding="utf-8")
    if not quick and set(names) == set(TEACHERS):
        tables.put(HERE.parents[1] / "README.md", readme.NAME, readme.table(rows))


def _versions() -> dict[str, str]:
    found = {k: v for k, v in environment().items() if k in ("python", "torch", "transformers")}
    try:
        found["torch-pruning"] = version("torch-pruning")
    except PackageNotFoundError:
        found["torch-pruning"] = "not installed"
    return found


def _json(facts: dict[str, object], rows: list[dict[str, object]], compared: list[dict[str, object]]) -> str:
    """Return the results with one line a row."""
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    for key, values in (("rows", rows), ("targets", compared)):
        lines = ",\n".join(f"  {json.dumps(value)}" for value in values)
        parts.append(f' "{key}": [\n{lines}\n ]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
