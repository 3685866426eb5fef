"""SHA-256 of files, remembered: hashing 16 GB takes half a minute, asking whether it changed a microsecond.

A file counts as unchanged while its path, size, modification time and inode are.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


def canonical_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class DigestMemo:
    """Digests of files already seen, in a small database that several processes may share."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, reading it only when it changed since last time."""
        identity = _identity(path)
        with self._open() as db:
            row = db.execute("SELECT digest FROM files WHERE path = ? AND identity = ?", identity).fetchone()
        if row:
            return str(row[0])
        digest = file_digest(path)
        self.remember([(path, digest)])
        return digest

    def remember(self, digests: Iterable[tuple[Path, str]]) -> None:
        """Record digests just computed, so that the next reader need not."""
        rows = [(*_identity(path), digest) for path, digest in digests]
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._database, timeout=60)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, identity TEXT, digest TEXT)")
            yield db


def folder_digest(folder: Path, names: Iterable[str], memo: DigestMemo) -> str:
    """Return one digest over the named files of a folder, by name and content."""
    return canonical_digest({name: memo.digest(folder / name) for name in sorted(names)})


def folder_content(folder: Path, memo: DigestMemo) -> str:
    """Return one digest over all files under a folder."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return folder_digest(folder, names, memo)


def _identity(path: Path) -> tuple[str, str]:
    stat = path.stat()
    return str(path.resolve()), f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
