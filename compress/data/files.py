"""Local text files as sources read them: found, hashed, or a clear error."""

from collections.abc import Iterable
from pathlib import Path

from compress.digests import DigestMemo, canonical_digest
from compress.errors import InputError


def require_file(path: str) -> Path:
    """Return the path of a file that is there. Raises `InputError`."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    return Path(path)


def digest_files(paths: Iterable[str], memo: DigestMemo) -> str:
    """Return one SHA-256 for the contents of several files, in their order; each is read only when it changed.

    Raises `InputError`.
    """
    return canonical_digest([memo.digest(require_file(path)) for path in paths])
