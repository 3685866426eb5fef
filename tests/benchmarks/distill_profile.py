"""Where does the time of a step of distillation go, and what bounds it?

Our whole step of `distill_speed.py`, profiled by operation and summed by kind, beside the bound of `distill_speed.py`.
A profile slows small operations; shares are what to read.

    python tests/benchmarks/distill_profile.py [--quick]
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distilling import jobs, parts
from torch.profiler import ProfilerActivity, profile

from compress.environment import environment

RESULTS = Path(__file__).parent / "results"
VOCABULARIES = (8_192, 32_768, 131_072)
STEPS = 3
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linalg_vecdot"),
    "compiled rows": ("_FusedLoss",),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::amax", "aten::exp"),
    "casts and copies": ("aten::copy_", "aten::clone", "aten::cat", "aten::index", "aten::nonzero", "aten::index_put_"),
    "optimizer": ("aten::_fused_adamw_",),
    "clipping": ("aten::_foreach_norm", "aten::_foreach_mul_", "aten::linalg_vector_norm"),
    "filling": ("aten::fill_", "aten::zero_"),
}  # fmt: skip


def main() -> None:
    """Profile each vocabulary in a process of its own; print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one vocabulary")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(shares(given.job)))
        return
    rows = []
    for vocabulary in VOCABULARIES[:1] if given.quick else VOCABULARIES:
        command = [sys.executable, __file__, "--job", str(vocabulary)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"vocabulary": vocabulary, **json.loads(done.stdout.splitlines()[-1])})
        row = rows[-1]
        shown = ", ".join(f"{kind} {ms:.0f} ms" for kind, ms in row["milliseconds"].items())
        print(
            f"{vocabulary:8,} ids: {rows[-1]['step_ms']:.0f} ms a step, at least {rows[-1]['bound_ms']:.0f}: {shown}"
        )
    facts = environment()
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {key: facts[key] for key in ("machine", "cores", "memory", "device")},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "command": " ".join(["python", "tests/benchmarks/distill_profile.py", *sys.argv[1:]]),
        "rows": rows,
        "targets": [],
    }
    name = "distill_profile_quick.json" if given.quick else "distill_profile.json"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def shares(vocabulary: int) -> dict[str, Any]:
    """Return milliseconds a step by kind of operation, the step's, and those of the bound."""
    teacher, student = parts.teacher_and_student(vocabulary)
    data = parts.RandomRows(vocabulary)
    step = parts.our_loop(parts.ours(student, teacher), student, data)
    for _ in range(2):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = (time.perf_counter() - started) / STEPS
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    sums: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        sums[kinds.get(event.key, "other operations")] += event.self_cpu_time_total / 1000 / STEPS
    bound = jobs.rates(vocabulary)
    return {
        "step_ms": 1000 * seconds,
        "bound_ms": 1000 * bound["bound"],
        "bound_parts_ms": {k: 1000 * v for k, v in bound.items() if k not in ("bound", "gflops_per_second")},
        "milliseconds": dict(sorted(sums.items(), key=lambda item: -item[1])),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
