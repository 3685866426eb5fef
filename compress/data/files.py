"""Local text files as sources read them: found, hashed, or a clear error."""

import fnmatch
from collections.abc import Iterable
from pathlib import Path

from compress.digests import DigestMemo, canonical_digest
from compress.errors import InputError, nearest

SHOWN = 3
"""Files that a message names."""


def require_file(path: str) -> Path:
    """Return the path of a file that is there. Raises `InputError`, which tells of files that may be meant."""
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise InputError(f"{path} is a folder; name files, each by itself{_such_as(_names(file))}")
    folder = file.parent
    if not folder.is_dir():
        raise InputError(f"no such file: {path}; there is no folder {folder}")
    if matching := fnmatch.filter(_names(folder), file.name):
        raise InputError(f"no such file: {path}; name files, each by itself{_such_as(matching)}")
    raise InputError(f"no such file: {path}{nearest(file.name, _names(folder))}")


def read_text(path: str) -> str:
    """Return what a file says. Raises `InputError` for one that is not there, or is not UTF-8."""
    try:
        return require_file(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


def digest_files(paths: Iterable[str], memo: DigestMemo) -> str:
    """Return one SHA-256 for the contents of several files, in their order; each is read only when it changed.

    Raises `InputError`.
    """
    return canonical_digest([memo.digest(require_file(path)) for path in paths])


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_file())


def _such_as(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""
