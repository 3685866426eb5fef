"""The first minutes on a GPU: what no test on a processor can show, in the order in which it would hurt.

    python tests/benchmarks/gpu_first_minutes.py                 # on a machine with a card: 12 minutes at most
    python tests/benchmarks/gpu_first_minutes.py --only decoding evaluation
    python tests/benchmarks/gpu_first_minutes.py --dry-run       # tiny shapes, on a processor

Nothing is fetched: weights are random and made on the card, in the shapes of Llama-3.1-8B and its 4B student. Every
item has a process and a time of its own, so that one that fails or hangs costs no other, and results are written after
each: a machine that is taken away half-way has still told something. Items for which no time is left say so.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

RESULTS = HERE / "results"
TOTAL_SECONDS = 12 * 60
ITEMS = {
    "machine": 40,
    "recomputing": 60,
    "kernels": 90,
    "attention": 90,
    "true_step": 150,
    "sizes": 90,
    "pipeline": 120,
    "team": 120,
    "checkpoint": 90,
    "pruning": 60,
    "decoding": 90,
    "evaluation": 60,
}
"""Most seconds of each. Most urgent first."""
PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "compress")
Row = dict[str, Any]


def main() -> None:
    """Run the items that were asked for, writing after each."""
    given = _arguments()
    if given.item:
        _run_here(given.item, given.dry_run, given.rows)
        return
    path = given.out or RESULTS / (
        "gpu_first_minutes_dry.json" if given.dry_run else "gpu_first_minutes.json"
    )
    started, rows = time.monotonic(), list[Row]()
    for item in given.only or ITEMS:
        left = given.seconds - (time.monotonic() - started)
        # A busy processor is no card: there the script is tried, and not the time.
        most = left if given.dry_run else min(ITEMS[item], left)
        rows += _run(item, most, given.dry_run, path)
        _write(path, rows)
    failed = sorted({row["item"] for row in rows if row.get("failed")})
    print(f"{path}: {len(rows)} rows; failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on a processor")
    parser.add_argument("--only", nargs="+", choices=ITEMS, metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all of it")
    parser.add_argument("--out", type=Path, help="where to write the results")
    parser.add_argument("--item", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(item: str, seconds: float, dry_run: bool, path: Path) -> list[Row]:
    """Return the rows of an item done in a process of its own, and how that ended."""
    print(f"{item} …", flush=True)
    if seconds < 5:
        return [{"item": item, "name": "not run", "note": "no time was left", "failed": True}]
    rows = path.with_suffix(f".{item}.jsonl")
    rows.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--item", item, "--rows", str(rows), *(["--dry-run"] * dry_run)]
    started = time.monotonic()
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
        ended = f"exit status {done.returncode}: {_last_lines(done.stderr)}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        ended = f"was not done in its {seconds:.0f} s"
    took = {"item": item, "name": "whole item", "value": round(time.monotonic() - started, 1), "unit": "s"}
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    rows.unlink(missing_ok=True)
    for row in (reported := [*found, took | ({"failed": True, "note": ended} if ended else {})]):
        print("  ", {name: value for name, value in row.items() if name != "item"}, flush=True)
    return reported


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-4:])


def _run_here(item: str, dry_run: bool, rows: Path) -> None:
    """Do an item in this process, writing each of its rows at once."""
    from gpu_minutes import items
    from gpu_minutes.scale import FULL, TINY

    with rows.open("a") as file:
        for row in getattr(items, item)(TINY if dry_run else FULL):
            file.write(json.dumps({"item": item, **row}) + "\n")
            file.flush()


def _write(path: Path, rows: list[Row]) -> None:
    from compress.environment import environment

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": environment(),
        "versions": versions,
        "command": " ".join(["python", "tests/benchmarks/gpu_first_minutes.py", *sys.argv[1:]]),
        "rows": rows,
        "targets": [_target(row) for row in rows if "goal" in row],
    }
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _target(row: Row) -> Row:
    """Return whether a figure is at most its goal (`at_least`: at least)."""
    value, goal = row["value"], row["goal"]
    met = value >= goal if row.get("at_least") else value <= goal
    return {"name": f"{row['item']}: {row['name']}", "goal": goal, "measured": value, "met": met}


if __name__ == "__main__":
    main()
