"""A real pretrained model pruned along every axis: excess loss of our steps beside Minitron's recipe, and recovered.

    python tests/benchmarks/real_pruning.py FOLDER [--data FOLDER]
    python tests/benchmarks/real_pruning.py FOLDER … --texts FOLDER --vocabulary 32k --recover ffn:50% --tokens 1M

FOLDER holds ``gemma-3-270m``, a Hugging Face checkpoint; the data's folder (by default the same) has
``wikitext2_valid.txt``: its latter half is held out, and calibration rows are of the first, so that both are of a kind.
The texts' folder has pages of another kind, HTML or plain: with ``--calibrate-on pages`` to calibrate on, with
``--recover-on corpus`` to learn from, too. Nothing is downloaded. All methods of `pruning/real_methods.py` prune to the
same sizes from the same calibration rows, which the seed chooses. Finished points are kept in ``--work``: a stopped run
goes on, and every run writes ``results/real_pruning.json`` from all points there are. ``--quick`` does the same to a
tiny model.

Two thirds of this model are the embedding, and most time goes to its 262,144 logits a token. ``--vocabulary 32k``
first cuts it to the ids the texts use most, and what is left is the original that everything is held against.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

from pruning import real_points, real_ratios
from pruning.real_methods import AXES, METHODS, RIVAL
from pruning.real_points import Bench, Plan, Point, Result
from real_models import stand_in
from real_models.packed import choose_calibration, with_vocabulary, write_rows
from real_models.texts import write_splits

from compress.environment import environment
from compress.quantities import parse_count

HERE = Path(__file__).parent
NAME = "gemma-3-270m"
HELD_OUT = "wikitext2_valid.txt"
SHARES, SEEDS = (0.5, 0.75), (1, 2, 3)
QUICK = Plan(heldout_rows=8, row_length=128, calibration_rows=16)
QUICK_TOKENS = 8192


def main() -> None:
    """Prepare, measure what is missing, report."""
    given = _options()
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            given.folder, given.work = Path(folder), Path(folder) / "work"
            stand_in.make(given.folder, NAME, HELD_OUT)
            run(given, QUICK)
        return
    if given.folder is None:
        sys.exit("which FOLDER has the model? See --help; --quick needs none")
    run(given, Plan())


def run(given: argparse.Namespace, plan: Plan) -> None:
    """Measure the points asked for, one after the other, each kept at once."""
    model, text = given.folder / NAME, (given.data or given.folder) / HELD_OUT
    for needed in (model / "config.json", text, given.texts or text):
        if not needed.exists():
            print(f"skipped: {needed} is not there")
            return
    plan = replace(
        plan,
        calibrated_on=given.calibrate_on,
        recovered_on=given.recover_on,
        vocabulary=given.vocabulary,
    )
    work = given.work / given.calibrate_on
    work.mkdir(parents=True, exist_ok=True)
    texts = write_splits(text, given.texts, work)
    write_rows(model, texts, work, plan.row_length)
    if given.vocabulary is not None:
        corpus, work = work / "corpus", work / f"vocabulary-{given.vocabulary}"
        work.mkdir(exist_ok=True)
        model = with_vocabulary(model, given.vocabulary, corpus, work / NAME)
        write_rows(model, texts, work, plan.row_length)
    for seed in {*SEEDS, *given.seeds}:
        choose_calibration(work, given.calibrate_on, seed, plan.calibration_rows)
    bench = Bench(model, texts["heldout"], work, plan)
    wanted = points(given)
    for number, point in enumerate(wanted, start=1):
        if not bench.file(point).is_file():
            result = bench.measure(point)
            left = _minutes(wanted[number:], bench)
            print(f"{number}/{len(wanted)} {point}: {_said(result)}; about {left:.0f} min left", flush=True)
            _report(bench, plan, given.quick, show=False)
    _report(bench, plan, given.quick)


def points(given: argparse.Namespace) -> list[Point]:
    """Return what is asked for: one seed of everything first, ours and the rival's in turns."""
    pruned = [
        Point(0, seed, axis, share, method)
        for seed in given.seeds
        for share in given.shares
        for axis in given.axes
        for method in given.methods
    ]
    if given.recover is None:
        return pruned
    axis, share = given.recover
    seeds = given.seeds if given.seeds_given else given.seeds[:1]
    recovered = [Point(given.tokens, seed, axis, share, method) for seed in seeds for method in given.methods]
    return [*pruned, *recovered] if given.quick else recovered


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help=f"holds {NAME}")
    parser.add_argument("--data", type=Path, help=f"holds {HELD_OUT}")
    parser.add_argument("--texts", type=Path, help="pages of another kind")
    parser.add_argument("--calibrate-on", choices=("calibration", "pages"), default="calibration")
    parser.add_argument("--recover-on", choices=("recovery", "corpus"), default="recovery")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("ours", RIVAL))
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--shares", nargs="+", type=_share, help="of the parameters outside the embedding")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the calibration rows")
    parser.add_argument("--recover", type=_place, metavar="AXIS:SHARE", help="distil this point's models")
    parser.add_argument("--tokens", type=parse_count, default="1M", help="to distil on, for --recover")
    parser.add_argument("--vocabulary", type=parse_count, help="ids to keep, all if left out")
    parser.add_argument("--work", type=Path, default=Path("real-pruning"), help="where results are kept")
    parser.add_argument("--quick", action="store_true", help="two minutes, a tiny model, no FOLDER")
    given = parser.parse_args()
    given.seeds_given = given.seeds is not None
    given.seeds = given.seeds or (SEEDS[:1] if given.quick else SEEDS)
    given.shares = given.shares or (SHARES[:1] if given.quick else SHARES)
    if given.quick:
        given.recover, given.tokens = given.recover or ("ffn", 0.5), QUICK_TOKENS
    return given


def _share(text: str) -> float:
    """Read ``50%`` or ``0.5``."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share such as 50%")
    return value


def _place(text: str) -> tuple[str, float]:
    axis, _, share = text.partition(":")
    if axis not in AXES:
        raise argparse.ArgumentTypeError(f"{axis} is no axis: {', '.join(AXES)}")
    return axis, _share(share)


def _minutes(waiting: list[Point], bench: Bench) -> float:
    """Return about how long the points left take, each as long as those like it, or as all, took so far."""
    took: dict[tuple[int, str, str], list[float]] = {}
    for point, result in bench.results().items():
        took.setdefault((point.tokens, point.axis, point.method), []).append(_seconds(result))
    usual = mean(seconds for each in took.values() for seconds in each)
    left = [point for point in waiting if not bench.file(point).is_file()]
    return sum(mean(took.get((p.tokens, p.axis, p.method), [usual])) for p in left) / 60


def _seconds(result: Result) -> float:
    return float(sum(seconds for name, seconds in result.items() if name.endswith("_seconds")))


def _said(result: Result) -> str:
    excess = ", ".join(
        f"{mean(result[phase]['loss']):.4f} {phase}" for phase in ("before", "after") if phase in result
    )
    kept = f"{result['parameters'] / 1e6:.1f}M parameters, {result['share_inside']:.1%} inside"
    return f"excess {excess} recovery, {kept}, {_seconds(result):.0f} s"


def _report(bench: Bench, plan: Plan, quick: bool, show: bool = True) -> None:
    """Write the results of all points there are; print the table."""
    found = bench.results()
    compared = real_ratios.targets(found)
    if show:
        print("\n".join(real_ratios.table(found)))
        for target in compared:
            print(f"{'met    ' if target['met'] else 'not met'} {target['name']}: {target['measured']}")
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {k: v for k, v in environment().items() if k in ("python", "torch", "transformers")},
        "command": "python tests/benchmarks/real_pruning.py " + ("--quick" if quick else "FOLDER"),
        "plan": asdict(plan),
        "own_code": real_points.own_version(),
    }
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    for key, values in (("rows", list(real_points.rows(found, plan))), ("targets", compared)):
        lines = ",\n".join(f"  {json.dumps(value)}" for value in values)
        parts.append(f' "{key}": [\n{lines}\n ]')
    name = "real_pruning_quick.json" if quick else "real_pruning.json"
    (HERE / "results" / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
