"""Real English: articles of the kind that is held out, and pages of another kind, in splits that share none."""

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

BLOCKS = frozenset({"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "blockquote", "td"})
UNREAD = frozenset({"script", "style", "head", "nav", "pre"})
SHORTEST = 60
"""Characters: shorter paragraphs are menus and captions."""
CALIBRATION_SHARE = 0.4
"""Of the articles that are not held out: as many rows as three seeds need to choose differently."""


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


def articles(text: str) -> list[str]:
    """Return a text's articles: what follows a heading such as `` = Title = ``, else what blank lines part."""
    found = re.split(r"\n(?= = [^=])", text)
    return found if len(found) > 1 else re.split(r"\n\n+", text.strip())


def write_splits(held_out: Path, pages: Path | None, into: Path) -> dict[str, Path]:
    """Write the texts of each split into ``SPLIT.txt``, a blank line between articles; return the files there are.

    Of the held-out file only the latter half is ``heldout``. The articles of the first half are for ``calibration`` and
    ``recovery``: what is judged is then of the kind that was calibrated on. ``pages`` are of another kind, in a folder.
    """
    whole = [each for each in articles(held_out.read_text(encoding="utf-8")) if each.strip()]
    half, passed, calibrated = sum(map(len, whole)) / 2, 0, 0
    written: dict[str, list[str]] = {"calibration": [], "recovery": [], "heldout": []}
    for article in whole:
        early = "calibration" if calibrated <= CALIBRATION_SHARE * passed else "recovery"
        split = early if passed < half else "heldout"
        written[split].append(re.sub(r"\n\s*", "\n", article).strip())
        passed += len(article)
        calibrated += len(article) if split == "calibration" else 0
    if pages is not None:
        found: dict[str, list[str]] = {}
        for name, paragraph in documents(pages):
            found.setdefault(name, []).append(paragraph)
        order = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
        written["pages"] = ["\n".join(found[name]) for name in order]
    paths = {split: into / f"{split}.txt" for split in written}
    for split, path in paths.items():
        path.write_text("\n\n".join(written[split]) + "\n", encoding="utf-8")
    return paths
