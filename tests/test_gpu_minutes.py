"""The script for the first minutes on a GPU runs, on a processor and in miniature: no card's time is lost to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks/gpu_first_minutes.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_item_gives_figures_and_none_fails(tmp_path):
    out = tmp_path / "dry.json"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--seconds", "800", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads(out.read_text())
    items = {row["item"] for row in found["rows"]}
    assert len(items) == 12
    for item in items:
        assert len([row for row in found["rows"] if row["item"] == item]) > 1, item
    assert all(target["met"] for target in found["targets"]), found["targets"]


def test_an_item_for_which_no_time_is_left_says_so(tmp_path):
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--dry-run",
        "--only",
        "pruning",
        "--seconds",
        "1",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["failed"] and "no time was left" in row["note"]
