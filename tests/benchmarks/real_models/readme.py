"""The README's table of a real model through the recipe that was written for it, from the rows of its result file."""

from collections.abc import Iterable, Iterator
from typing import Any

NAME = "real_model"
Row = dict[str, Any]


def table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown: a row a model, with 95 % intervals where a figure has one."""
    return "\n".join(_lines(list(rows))) + "\n"


def _lines(rows: list[Row]) -> Iterator[str]:
    yield "| model | weights | accuracy | perplexity | KL, nats/token | ms/token, by the original's |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        cells = (
            f"{row['weight_bytes'] / 1e6:,.0f} MB",
            _cell(row, "mean_accuracy", 100, "{:.1f} %", "{:.0f} to {:.0f}"),
            _cell(row, "perplexity", 1, "{:.3g}", "{:.3g} to {:.3g}"),
            _cell(row, "kl_divergence", 1, "{:.3g}", "{:.3g} to {:.3g}"),
            _cell(row, "time_per_output_token_ratio", 1, "{:.2f} x", "{:.2f} to {:.2f}"),
        )
        yield f"| {row['name']} | " + " | ".join(cells) + " |"


def _cell(row: Row, name: str, times: float, value: str, interval: str) -> str:
    found = [figure for figure in row["figures"] if figure["name"] == name]
    if not found:
        return ""
    figure = found[0]
    said = value.format(times * figure["value"])
    if figure["low"] is None:
        return said
    return f"{said} ({interval.format(times * figure['low'], times * figure['high'])})"
