"""The table of the real model's pruning in the README."""

from collections import defaultdict
from statistics import mean
from typing import Any

NAME = "real_pruning"
COLUMNS = {"ours": "pruned and refitted", "reconstructed": "with `reconstruct: 60`", "minitron": "Minitron"}
AXES = {"ffn": "FFN neurons", "hidden": "hidden channels", "layers": "layers", "search": "`prune.search`"}


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean excess loss over seeds by what was cut and by method, and its share of Minitron's."""
    figures: dict[tuple[str, float, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        recovered = row["tokens"] if row["phase"] == "after" else 0
        figures[row["axis"], row["share"], recovered][row["method"]].append(row["excess_loss"])
    lines = [f"| {' | '.join(['what is cut', 'recovery', *COLUMNS.values()])} |", "|---|---|---|---|---|"]
    order = list(AXES)
    for place in sorted(figures, key=lambda each: (order.index(each[0]), each[1], each[2])):
        axis, share, recovered = place
        rival = mean(figures[place]["minitron"]) if "minitron" in figures[place] else None
        cells = [_cell(figures[place].get(method), rival, method) for method in COLUMNS]
        tokens = f"{recovered / 1000:,.0f}k tokens" if recovered else "none"
        lines.append(f"| {AXES[axis]}, {share:.0%} kept | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[float] | None, rival: float | None, method: str) -> str:
    if not found:
        return ""
    share = "" if rival is None or method == "minitron" else f" ({mean(found) / rival:.2f} x)"
    return f"{mean(found):.3f}{share}"
