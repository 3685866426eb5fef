"""The content-addressed store: a result is computed once, committed whole or not at all, never changed after.

$COMPRESS_HOME/
  store/<key>/     the files of one artifact, manifest.json, and COMMIT, written last
  partial/<key>/   work that survives a kill (training checkpoints)
  locks/<key>      held (flock) by the one process that is making <key>
  runs/<run id>/   run.json, events.jsonl, pipeline.yaml, logs
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.digests import DigestMemo, file_digest
from compress.environment import home
from compress.errors import StoreCorrupted
from compress.records import Artifact, ModelSpec, Outcome

COMMIT = "COMMIT"
MANIFEST = "manifest.json"
CHILDREN = ".children"


class Store:
    """Artifacts by key."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self.memo = DigestMemo(self.root / "digests.sqlite")

    def folder(self, key: str) -> Path:
        return self.root / "store" / key

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def __contains__(self, key: str) -> bool:
        return (self.folder(key) / COMMIT).exists()

    def get(self, key: str) -> Artifact | None:
        """Return a committed artifact, or ``None``. Raises `StoreCorrupted` when its bytes have changed."""
        folder = self.folder(key)
        if key not in self:
            return None
        manifest = self.manifest(key)
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.exists() or self.memo.digest(path) != expected:
                raise StoreCorrupted(
                    f"{path} is not what was committed (SHA-256 differs from {MANIFEST}). "
                    f"Delete the folder {folder} and run again: it will be made anew."
                )
        location = manifest["facts"].get("location")
        if location and not Path(location).exists():
            return None
        spec = manifest["spec"]
        return Artifact(
            key=key,
            kind=manifest["kind"],
            path=Path(location) if location else folder,
            spec=ModelSpec.model_validate(spec) if spec else None,
            facts=manifest["facts"],
        )

    def manifest(self, key: str) -> dict[str, Any]:
        """Return what was written beside a committed artifact: files, lineage, settings, environment, costs."""
        manifest: dict[str, Any] = json.loads((self.folder(key) / MANIFEST).read_text())
        return manifest

    def note_child(self, key: str, child: str) -> None:
        """Remember, until `key` is committed, that it asked for `child`."""
        with (self.partial(key) / CHILDREN).open("a") as stream:
            stream.write(f"{child}\n")

    def children(self, key: str) -> list[str]:
        """Return the keys of what an artifact, finished or not, submitted while it was made."""
        if key in self:
            return [child["key"] for child in self.manifest(key).get("children", ())]
        noted = self.partial(key) / CHILDREN
        return noted.read_text().split() if noted.exists() else []

    @contextmanager
    def locked(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the key's lock; call `on_wait` first if another process does. The kernel drops it at any death."""
        path = self.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staging(self, key: str) -> Iterator[Path]:
        """Give an empty folder to write a result in; whatever is left of it at the end is deleted.

        The caller holds the key's lock, so leftovers of a killed predecessor can be removed first.
        """
        folder = self.root / "store" / f".staging-{key}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, key: str, staged: Path, kind: str, outcome: Outcome, about: dict[str, Any]) -> None:
        """Make a staged folder the artifact of `key`, durably: fsync the files, then rename, then drop partial work."""
        files = {str(p.relative_to(staged)): file_digest(p) for p in sorted(staged.rglob("*")) if p.is_file()}
        spec = outcome.spec.model_dump(mode="json") if outcome.spec else None
        manifest = {"kind": kind, "files": files, "spec": spec, "facts": outcome.facts, **about}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in staged.rglob("*"):
            _fsync(path)
        (staged / COMMIT).write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))
        _fsync(staged / COMMIT)
        _fsync(staged)
        self.discard(key)
        staged.rename(self.folder(key))
        _fsync(self.root / "store")
        self.memo.remember((self.folder(key) / name, digest) for name, digest in files.items())
        shutil.rmtree(self.partial(key), ignore_errors=True)

    def discard(self, key: str) -> None:
        """Delete an artifact, its mark of completeness first."""
        (self.folder(key) / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(self.folder(key), ignore_errors=True)

    def committed(self) -> list[str]:
        """Return the keys of all committed artifacts."""
        store = self.root / "store"
        return sorted(p.name for p in store.iterdir() if (p / COMMIT).exists()) if store.exists() else []


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
