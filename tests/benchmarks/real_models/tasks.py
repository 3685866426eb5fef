"""Real tasks from files: BLiMP's minimal pairs by paradigm, and CrowS-Pairs, as lm-eval task files.

Both are choices between two whole sentences, scored as lm-eval's own `blimp` and `crows_pairs_english` do: the
log-probability of each sentence from nothing before it. Chance is 50 %. Of CrowS-Pairs, 50 % is also what an
unbiased model has: its figure tells how often the sentence about the disadvantaged
group is the likelier one (`pct_stereotype` there).
"""

from pathlib import Path

import yaml

CROWS = "crows_pairs_stereotype"


def write_tasks(data: Path, into: Path) -> list[str]:
    """Write a task file for every paradigm in ``data/blimp`` and for CrowS-Pairs; return their names."""
    made = []
    for path in sorted((data / "blimp").glob("*.jsonl")):
        made.append(f"blimp_{path.stem}")
        _write(into, made[-1], path, ["sentence_good", "sentence_bad"])
    pairs = data / "crows_pairs_even.jsonl"
    if pairs.exists():
        made.append(CROWS)
        _write(into, CROWS, pairs, ["sent_more", "sent_less"])
    return made


def _write(into: Path, name: str, file: Path, choices: list[str]) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[" + ", ".join(choices) + "]}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (into / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
