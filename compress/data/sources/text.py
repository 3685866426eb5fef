"""Text or Markdown files, read as they stand."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import Field

from compress.data.files import digest_files, require_file
from compress.digests import DigestMemo
from compress.errors import InputError
from compress.plugins import StepConfig

VERSION = 2

HELD_OUT_EVERY = 10
"""Documents of which the last is held out."""


class Config(StepConfig):
    """Which files to read, and where a document ends."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, in this order, UTF-8; a byte order mark at their start is no text."""
    documents: Literal["blank_lines", "files"] = "blank_lines"
    """``blank_lines``: blank lines part documents. ``files``: each file is one (and is read whole)."""
    split: Literal["all", "train", "heldout"] = "all"
    """``heldout`` is every tenth document, ``train`` the others: two readings of the same files that share nothing."""


def documents(config: Config, seed: int) -> Iterator[str]:
    """Yield the documents in their order (the seed changes nothing). Raises `InputError` for a bad file."""
    everything = (text for path in config.paths for text in _documents(require_file(path), config.documents))
    for number, text in enumerate(everything):
        part = "heldout" if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
        if config.split in ("all", part):
            yield text


def digest(config: Config, memo: DigestMemo) -> str:
    """Return the SHA-256 over the files' contents, in their order, where a document ends, and which are read."""
    part = "" if config.split == "all" else f":{config.split} of {HELD_OUT_EVERY}"
    return f"{digest_files(config.paths, memo)}:{config.documents}{part}"


def _documents(path: Path, kind: Literal["blank_lines", "files"]) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            if kind == "files":
                yield lines.read()
                return
            for is_text, group in groupby(lines, key=lambda line: bool(line.strip())):
                if is_text:
                    yield "".join(group).rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
