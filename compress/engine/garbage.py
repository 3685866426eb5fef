"""Deleting what no run needs any more."""

import json
import shutil
from pathlib import Path
from typing import Any

from compress.digests import canonical_digest
from compress.engine.runs import INGREDIENTS, runs_folder
from compress.engine.store import Store, folder_bytes


def collect(store: Store, *, keep_runs: int, dry_run: bool) -> tuple[int, int]:
    """Delete artifacts and partial work that none of the latest `keep_runs` runs of each pipeline refers to.

    Older runs' records are deleted with them. Returns how many entries went and how many bytes.
    """
    kept, dropped = _split_runs(store.root, keep_runs)
    needed = {key for folder in kept for key in _keys(folder)}
    needed |= {child for key in needed for child in store.children(key)}
    stale = [store.folder(key) for key in store.committed() if key not in needed]
    stale += [
        p for p in (store.root / "store").glob(".staging-*") if p.name.removeprefix(".staging-") not in needed
    ]
    stale += [p for p in (store.root / "partial").glob("*") if p.name not in needed]
    stale += dropped
    freed = sum(map(folder_bytes, stale))
    if not dry_run:
        for folder in stale:
            (folder / "COMMIT").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    return len(stale), freed


def _split_runs(root: Path, keep_runs: int) -> tuple[list[Path], list[Path]]:
    by_name: dict[str, list[Path]] = {}
    for file in sorted(runs_folder(root).glob(f"*/{INGREDIENTS}"), key=lambda p: -p.stat().st_mtime):
        by_name.setdefault(file.parent.name.rpartition("-")[0], []).append(file.parent)
    kept = [run for runs in by_name.values() for run in runs[:keep_runs]]
    return kept, [run for runs in by_name.values() for run in runs[keep_runs:]]


def _keys(run: Path) -> list[str]:
    """Return the keys of everything a run's plan made, internal nodes too."""
    ingredients: dict[str, Any] = json.loads((run / INGREDIENTS).read_text())
    return [canonical_digest(each) for each in ingredients.values()]
