"""The README's table of the speed benchmark, from the rows of its result file."""

from collections.abc import Iterable, Iterator
from typing import Any

NAME = "distill_speed"
SHOWN = {
    "ours": "`compress`",
    "ours, cached": "`compress`, cached teacher",
    "plain": "plain loop",
    "TRL GKD": "TRL, GKD loss",
    "TRL distillation": "TRL, distillation loss",
    "ours, TRL GKD head": "our loop, GKD loss",
    "ours, TRL distillation head": "our loop, distillation loss",
}
Row = dict[str, Any]


def table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown: median tokens/s and peak memory of whole steps, a row a method."""
    return "\n".join(_lines([row for row in rows if row["kind"] == "steps"])) + "\n"


def _lines(rows: list[Row]) -> Iterator[str]:
    vocabularies = sorted({row["vocabulary"] for row in rows})
    yield "| tokens/s (peak memory) | " + " | ".join(f"{each:,} ids" for each in vocabularies) + " |"
    yield "|---|" + "---|" * len(vocabularies)
    for name, said in SHOWN.items():
        cells = [_cell([r for r in rows if (r["name"], r["vocabulary"]) == (name, v)]) for v in vocabularies]
        yield f"| {said} | " + " | ".join(cells) + " |"


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "n/a"
    row = rows[0]  # where it took turns with the most others
    return f"{row['tokens_per_second']:,.0f} ({row['peak_bytes'] / 2**30:.1f} GiB)"
