"""Putting a table into the README, between its marks."""

from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """Return the lines before and behind a table."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def put(readme: Path, name: str, table: str) -> None:
    """Put a table where the README has its marks."""
    text = readme.read_text(encoding="utf-8")
    begin, end = marks(name)
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    readme.write_text(f"{before}{begin}\n{table}{end}{after}", encoding="utf-8")
