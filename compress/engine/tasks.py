"""The message a driver sends to a worker: one node's work, complete and serializable."""

from pathlib import Path

from compress.records import Artifact, JsonValue, Record


class Task(Record):
    """Make the artifact `key` by calling module `use` on `parent`."""

    key: str
    use: str
    settings: dict[str, JsonValue]
    parent: Artifact | None
    inputs: dict[str, Artifact]
    seed: int
    root: Path
    """The store's root."""
    lineage: dict[str, JsonValue]
    """What the key was made of; written into the manifest."""
