"""A real pretrained model through the recipe that `compress init` writes for it, measured after every step.

    python tests/benchmarks/real_model.py FOLDER [--data FOLDER] [--texts FOLDER] [--target 60%] [--publish]

FOLDER holds ``gemma-3-270m``, a Hugging Face checkpoint. The data's folder (by default the same) holds
``wikitext2_valid.txt`` (half of it held out, the other to calibrate with and learn from), ``blimp/*.jsonl`` and
``crows_pairs_even.jsonl``; the texts' folder pages of English as HTML or plain text, to learn from as well. Nothing is
downloaded. Where the model or the text is missing, it says so and does nothing.

Written are ``results/real_model.json`` (size, time planned beside time taken, divergence, perplexity, every task, for
every step) and, with ``--publish``, the rendered report as ``reports/gemma-3-270m.html``.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from real_models.tasks import write_tasks
from real_models.texts import write_splits

from compress.engine.runs import find_run
from compress.environment import environment
from compress.records import StepRecord

HERE = Path(__file__).parent
REPORTS = HERE.parents[1] / "reports"
NAME = "gemma-3-270m"
HELD_OUT = "wikitext2_valid.txt"
SPLITS = {"calibration": ("calibration",), "recovery": ("recovery", "pages"), "heldout": ("heldout",)}
"""Which texts each of the recipe's data are made of; more than one in equal parts."""
FIGURES = ("kl_divergence", "same_top_token", "perplexity", "bits_per_byte", "mean_accuracy")


def main() -> None:
    """Prepare, run, write the results."""
    options = _options()
    if options.folder is None:
        print("skipped: it takes a folder with a real model, and the better part of an hour; see --help")
        return
    model, data = options.folder / NAME, options.data or options.folder
    texts = options.texts
    for needed in (model / "config.json", data / HELD_OUT, texts or data):
        if not needed.exists():
            print(f"skipped: {needed} is not there")
            return
    options.work.mkdir(parents=True, exist_ok=True)
    pipeline = recipe(model, data, texts, options.target, options.work)
    plan = _compress("plan", str(pipeline))
    print(plan, flush=True)
    begun = time.monotonic()
    _compress("run", str(pipeline), "--report-folder", str(options.work))
    seconds = time.monotonic() - begun
    record = find_run(NAME)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {k: environment()[k] for k in ("python", "torch", "transformers", "lm-eval")},
        "command": f"python tests/benchmarks/real_model.py FOLDER --target {options.target}",
        "pipeline": record.pipeline,
        "plan": plan.splitlines(),
        "planned_seconds": _planned_seconds(plan),
        "seconds": round(seconds, 1),
        "rows": [row(step) for step in record.steps],
    }
    _show(result)
    places = {options.work: "work", options.folder: "models", data: "data", HERE.parents[1]: "."}
    _publish(json.dumps(result, indent=1) + "\n", HERE / "results" / "real_model.json", places)
    if options.publish:
        report = (options.work / f"{record.id}.html").read_text(encoding="utf-8")
        _publish(report, REPORTS / f"{NAME}.html", places)


def _publish(text: str, path: Path, places: dict[Path, str]) -> None:
    """Write a text in which folders of this machine go by what they hold."""
    for place in sorted(places, key=lambda each: -len(str(each.resolve()))):
        text = text.replace(str(place.resolve()), places[place])
    path.write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help=f"holds {NAME}; without it nothing is done")
    parser.add_argument("--data", type=Path, help=f"holds {HELD_OUT}, blimp and crows_pairs_even.jsonl")
    parser.add_argument("--texts", type=Path, help="pages of another kind, to learn from, too")
    parser.add_argument("--target", default="60%", help="what `compress init` is told to keep")
    parser.add_argument("--work", type=Path, default=Path("real-model"), help="where files are put meanwhile")
    parser.add_argument("--quick", action="store_true", help="of `make bench`: there is no quicker way")
    parser.add_argument("--publish", action="store_true", help="copy the report into reports/")
    return parser.parse_args()


def recipe(model: Path, data: Path, texts: Path | None, target: str, work: Path) -> Path:
    """Write what `compress init` makes of the model, with real texts and tasks in place of the demo's."""
    path = work / f"{NAME}.yaml"
    path.unlink(missing_ok=True)
    _compress("init", str(model), "--target", target, "-o", str(path))
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["name"] = NAME
    files = write_splits(data / HELD_OUT, texts, work)
    for name, section in document["data"].items():
        kept = {key: value for key, value in section.items() if key not in ("source", "split", "paths")}
        parts = [{"source": "text", "paths": [str(files[split])]} for split in SPLITS[name] if split in files]
        mixed = {"source": "mixture", "parts": parts} if len(parts) > 1 else parts[0]
        document["data"][name] = {**mixed, **kept}
    tasks = work / "tasks"
    tasks.mkdir(exist_ok=True)
    document["evaluate"] |= {"tasks": write_tasks(data, tasks), "task_folder": str(tasks)}
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def row(step: StepRecord) -> dict[str, Any]:
    """Return what is compared of a step: sizes, time beside the estimate, every figure with its interval."""
    return {
        "name": step.name,
        "use": step.use,
        "parameters": step.realized.num_parameters,
        "weight_bytes": step.realized.weight_bytes,
        "planned_seconds": step.estimated_seconds,
        "seconds": round(step.seconds, 2),
        "peak_memory_bytes": step.peak_memory_bytes,
        "planned_peak_memory_bytes": step.estimated_peak_memory_bytes,
        "figures": [
            {
                "name": m.name,
                **m.labels,
                "value": m.value,
                "low": m.low,
                "high": m.high,
                "n": m.n,
                "unit": m.unit,
            }
            for m in step.measurements
        ],
    }


def _compress(*arguments: str) -> str:
    """Run a command; its output, progress included, goes on to the terminal and is returned."""
    command = [sys.executable, "-m", "compress", *arguments]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode not in (0, 4):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


UNITS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001}


def _planned_seconds(plan: str) -> float:
    """Return the seconds that the last line of a plan tells: ``about 42 min 10 s of work``."""
    (footer,) = [line for line in plan.splitlines() if line.startswith("about ") and " of work" in line]
    return sum(float(n) * UNITS[unit] for n, unit in re.findall(r"([\d.]+) (d|h|min|ms|s)\b", footer))


def _show(result: dict[str, Any]) -> None:
    planned, seconds = result["planned_seconds"], result["seconds"]
    print(f"planned {planned:,.0f} s, took {seconds:,.0f} s: {seconds / planned:.2f} x")
    for step in result["rows"]:
        shown = {f["name"]: f["value"] for f in step["figures"] if f["name"] in FIGURES}
        size = step["weight_bytes"] / 1e6
        about = f"{step['planned_seconds']:,.0f} s planned" if step["planned_seconds"] else "no estimate"
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        print(f"{step['name']:16} {size:8.1f} MB  {step['seconds']:8.1f} s ({about})  {figures}")


if __name__ == "__main__":
    main()
