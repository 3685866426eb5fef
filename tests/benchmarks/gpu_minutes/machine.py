"""What is there, and whether the tests that wait for a card pass on it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_minutes.scale import Scale, row

REPOSITORY = Path(__file__).parents[3]
ON_A_CARD = ("tests/distill/test_gpu_rows.py", "tests/train/test_attention_gpu.py", "tests/gpu")


def machine(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield what this machine is, as the planner, torch and the doctor see it."""
    import torch

    from compress.engine.doctor import doctor
    from compress.machine import this_machine

    found = this_machine()
    yield from row("cards seen by the planner", found.num_cards, "cards", note=str(found.card))
    yield from row("cards seen by torch", torch.cuda.device_count(), "cards", note=torch.__version__)
    if scale.is_full:
        free, total = torch.cuda.mem_get_info()
        yield from row("memory of the card", total, "B", note=f"{free} B are free")
        yield from row(
            "capability", sum(torch.cuda.get_device_capability()), "", note=str(torch.version.cuda)
        )
    ill = [finding for finding in doctor() if not finding.well]
    yield from row("ill by the doctor", len(ill), "findings", note="; ".join(f.what for f in ill))


def kernels(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield how the tests went that need a card; then how long the fused loss takes by kernel and by tiles.

    Without a card they are only collected, to see that they can be.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", ""]
    if not scale.is_full:
        command += ["--collect-only", *ON_A_CARD[1:]]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        yield from row("tests collected", done.stdout.count("::"), "tests", goal=20, at_least=True)
        return
    done = subprocess.run([*command, *ON_A_CARD], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    counts = {
        name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    bad = counts.get("failed", 0) + counts.get("error", 0)
    yield from row(
        "tests that failed", bad, "tests", n=sum(counts.values()), goal=0, note=" | ".join(lines[:8])
    )
    yield from row("tests that passed", counts.get("passed", 0), "tests", n=sum(counts.values()))
    import fused_head
    import torch

    for dtype in (torch.bfloat16, torch.float32):
        for by_kernel in (True, False):
            time_ms, peak_gb = fused_head.measured(fused_head.step(dtype, by_kernel))
            what = f"fused loss, {str(dtype).removeprefix('torch.')}, by {'kernel' if by_kernel else 'tiles'}"
            yield from row(what, time_ms, "ms", n=fused_head.REPEATS, goal=fused_head.GOAL_MS)
            yield from row(f"{what}: memory", peak_gb, "GB", goal=fused_head.GOAL_GB)
