"""Is the teacher worth it? Three ways to spend the same tokens on the quickstart's pruned shape, over three seeds.

`distill` (the quickstart's recovery), `train` on the labels alone from the same pruned weights, and `train` from
random weights of the same shape. Each way uses the learning rate that did best on a seed of its own, kept out of the
comparison. A difference counts when its 95 % interval, paired by seed (Student's t), excludes 0.

    python tests/benchmarks/quickstart_controls.py [--quick]
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import yaml
from scipy.stats import t as student_t

import compress
from compress.environment import environment
from compress.records import RunRecord

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "pipelines" / "quickstart.yaml"
ARMS = ("distill", "labels", "scratch")
FIGURES = {"mean_accuracy": "share", "heldout_loss": "nats/token"}
TUNING_SEED = 1000


def controls(seed: int, rates: dict[str, float], tokens: int, samples: int) -> RunRecord:
    """Run the quickstart's pruning and the three ways; return the record."""
    document = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    steps = {step["name"]: step for step in document["steps"]}
    same = {"data": "recovery", "tokens": tokens, "batch_tokens": steps["recover"]["batch_tokens"]}
    document |= {
        "name": f"controls-{seed}",
        "seed": seed,
        "baselines": [],
        "profile": {"prompt_tokens": [8], "new_tokens": 2, "repeats": 1},
        "steps": [
            steps["shallow"],
            steps["narrow"],
            {**steps["recover"], **same, "name": "distill", "learning_rate": rates["distill"]},
            {**same, "name": "labels", "use": "train", "from": "narrow", "learning_rate": rates["labels"]},
            {"name": "blank", "use": "train.initialize", "from": "narrow"},
            {**same, "name": "scratch", "use": "train", "from": "blank", "learning_rate": rates["scratch"]},
        ],
    }
    document["data"]["recovery"]["tokens"] = tokens
    document["evaluate"] |= {"samples": samples, "prompts": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "controls.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return compress.run(compress.load_pipeline(path))


def figures(record: RunRecord, arm: str) -> dict[str, float]:
    """Return an arm's mean task accuracy and its loss on held-out text."""
    measured = {m.name: m.value for m in record.step(arm).measurements}
    return {"mean_accuracy": measured["mean_accuracy"], "heldout_loss": math.log(measured["perplexity"])}


def tuned_rates(candidates: tuple[float, ...], tokens: int, samples: int) -> dict[str, float]:
    """Return for each arm the candidate with the smallest held-out loss on the tuning seed."""
    if len(candidates) == 1:
        return dict.fromkeys(ARMS, candidates[0])
    loss = {
        rate: {arm: figures(record, arm)["heldout_loss"] for arm in ARMS}
        for rate in candidates
        for record in [controls(TUNING_SEED, dict.fromkeys(ARMS, rate), tokens, samples)]
    }
    return {arm: min((loss[rate][arm], rate) for rate in candidates)[1] for arm in ARMS}


def paired_interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of differences between pairs and its 95 % interval by Student's t."""
    n = len(differences)
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    margin = float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - margin, mean + margin


def targets(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Compare the arms pair by pair in both figures."""
    found = {(row["seed"], row["arm"], row["figure"]): float(str(row["value"])) for row in rows}
    seeds = sorted({int(str(row["seed"])) for row in rows})
    made = []
    for better, worse in (("distill", "labels"), ("distill", "scratch"), ("labels", "scratch")):
        for figure, sign in (("mean_accuracy", 1), ("heldout_loss", -1)):
            differences = [found[s, better, figure] - found[s, worse, figure] for s in seeds]
            mean, low, high = paired_interval(differences)
            made.append(
                {
                    "name": f"{better} beats {worse}: {figure}",
                    "goal": "95 % paired interval excludes 0 on the right side",
                    "measured": f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] {FIGURES[figure]}, n={len(seeds)} seeds",
                    "met": min(sign * low, sign * high) > 0,
                }
            )
    return made


def main() -> None:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the tokens, fewer items, no tuning"
    )
    quick = parser.parse_args().quick
    tokens, samples, seeds = (150_000, 200, (1, 2, 3)) if quick else (600_000, 500, (1, 2, 3))
    rates = tuned_rates((1.5e-3,) if quick else (1e-3, 2e-3, 4e-3), tokens, samples)
    rows = [
        {"seed": seed, "arm": arm, "figure": figure, "value": value, "unit": FIGURES[figure], "n": samples}
        | {"tokens": tokens, "learning_rate": rates[arm]}
        for seed in seeds
        for record in [controls(seed, rates, tokens, samples)]
        for arm in ARMS
        for figure, value in figures(record, arm).items()
    ]
    compared = targets(rows)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: environment()[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {
            k: v for k, v in environment().items() if k in ("python", "torch", "transformers", "lm-eval")
        },
        "command": " ".join(["python", "tests/benchmarks/quickstart_controls.py", *sys.argv[1:]]),
        "rows": rows,
        "targets": compared,
    }
    for row in rows:
        print(f"seed {row['seed']}  {row['arm']:8} {row['figure']:14} {row['value']:.4f} {row['unit']}")
    for target in compared:
        print(f"{'met    ' if target['met'] else 'not met'} {target['name']}: {target['measured']}")
    (HERE / "results").mkdir(exist_ok=True)
    name = "quickstart_controls_quick.json" if quick else "quickstart_controls.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
