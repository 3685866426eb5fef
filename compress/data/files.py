"""Local text files as sources read them: found, hashed, or a clear error."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from compress.errors import InputError


def require_file(path: str) -> Path:
    """Return the path of a file that is there. Raises `InputError`."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    return Path(path)


def digest_files(paths: Iterable[str]) -> str:
    """Return one SHA-256 for the contents of several files, in their order. Raises `InputError`."""
    total = hashlib.sha256()
    for path in paths:
        with require_file(path).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
