"""Real English for calibration and recovery: plain text, or the paragraphs of HTML pages, cut into disjoint splits.

A page belongs to a split by the hash of its name, so calibration and recovery share none, whatever else lies there.
"""

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

BLOCKS = frozenset({"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "blockquote", "td"})
UNREAD = frozenset({"script", "style", "head", "nav", "pre"})
SHORTEST = 60
"""Characters: shorter paragraphs are menus and captions."""
CALIBRATION_SHARE = 0.15


class _Paragraphs(HTMLParser):
    """Collects the text of a page's blocks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._words: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._unread += tag in UNREAD
        if tag in BLOCKS:
            self._finish()

    def handle_endtag(self, tag: str) -> None:
        self._unread -= tag in UNREAD
        if tag in BLOCKS:
            self._finish()

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self._words.append(data)

    def _finish(self) -> None:
        text = re.sub(r"\s+", " ", "".join(self._words)).strip()
        self._words.clear()
        if len(text) >= SHORTEST:
            self.paragraphs.append(text)


def documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of every page below a folder: ``*.html`` and ``*.txt``, each text once."""
    seen: set[str] = set()
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.txt")]):
        content = path.read_text(encoding="utf-8", errors="replace")
        for paragraph in _paragraphs(path, content):
            if paragraph not in seen:
                seen.add(paragraph)
                yield str(path.relative_to(folder)), paragraph


def _paragraphs(path: Path, content: str) -> list[str]:
    if path.suffix == ".txt":
        return [part.strip() for part in re.split(r"\n\s*\n", content) if len(part.strip()) >= SHORTEST]
    page = _Paragraphs()
    page.feed(content)
    page.close()
    return page.paragraphs


def write_splits(folder: Path, into: Path) -> dict[str, Path]:
    """Write ``calibration.txt`` and ``recovery.txt``, a blank line between pages; return their paths by split."""
    pages: dict[str, list[str]] = {}
    for name, paragraph in documents(folder):
        pages.setdefault(name, []).append(paragraph)
    order = sorted(pages, key=lambda name: hashlib.sha256(name.encode()).digest())
    paths = {split: into / f"{split}.txt" for split in ("calibration", "recovery")}
    written: dict[str, list[str]] = {split: [] for split in paths}
    for name in order:
        unit = int.from_bytes(hashlib.sha256(f"split {name}".encode()).digest()[:6], "big") / 2**48
        written["calibration" if unit < CALIBRATION_SHARE else "recovery"].append("\n".join(pages[name]))
    for split, path in paths.items():
        path.write_text("\n\n".join(written[split]) + "\n", encoding="utf-8")
    return paths
