"""The README's table of the pruning benchmark, from the rows of its result file."""

from collections.abc import Iterable, Iterator
from statistics import mean
from typing import Any

NAME = "pruning_quality"
SHOWN = {
    "ours": "`prune.search`",
    "minitron": "Minitron",
    "minitron-30": "Minitron, 30 candidates",
    "depth": "block influence",
    "torch-pruning": "torch-pruning",
    "magnitude": "magnitude",
    "random": "random",
}
Row = dict[str, Any]


def table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown: mean excess loss over the teacher, before → after recovery, a row a point."""
    figures: dict[tuple[str, float], dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if "excess_loss" in row:
            at = figures.setdefault((row["teacher"], row["budget"]), {})
            at.setdefault((row["method"], row["phase"]), []).append(row["excess_loss"])
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: dict[tuple[str, float], dict[tuple[str, str], list[float]]]) -> Iterator[str]:
    yield "| teacher, parameters kept | " + " | ".join(SHOWN.values()) + " |"
    yield "|---|" + "---|" * len(SHOWN)
    for (teacher, budget), at in figures.items():
        cells = [_cell(at.get((method, "before")), at.get((method, "after"))) for method in SHOWN]
        yield f"| {teacher}, {budget:.0%} | " + " | ".join(cells) + " |"


def _cell(before: list[float] | None, after: list[float] | None) -> str:
    return f"{mean(before):.3f} → {mean(after):.3f}" if before and after else "n/a"
