"""The message a driver sends to a worker: one node's work, complete and serializable."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import plugins
from compress.digests import canonical_digest
from compress.pipeline.keys import ingredients
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
    is_child: bool = False
    """Submitted by a running step, not planned."""

    @property
    def child_name(self) -> str:
        """What a child is called beside its step: the last part of its module, and the key's beginning."""
        return f"{self.use.rpartition('.')[2]}-{self.key[:8]}"


def child_of(
    task: Task, use: str, settings: Mapping[str, Any], parent: Artifact, inputs: Mapping[str, Artifact]
) -> Task:
    """Return the task of work submitted by a running one, under the key the planner would give it."""
    assert not task.is_child, f"{task.use} was submitted: it cannot submit {use}"
    module: Any = plugins.internal(use)
    config = module.Config.model_validate(dict(settings))
    missing = set(plugins.needed(module, config)) - set(inputs)
    assert not missing, f"{use} also needs inputs: {', '.join(sorted(missing))}"
    made_of = ingredients(use, config, parent.key, {name: a.key for name, a in inputs.items()}, task.seed)
    return Task(
        key=canonical_digest(made_of),
        use=use,
        settings=config.model_dump(mode="json"),
        parent=parent,
        inputs=dict(inputs),
        seed=task.seed,
        root=task.root,
        lineage={"use": use, "ingredients": made_of},
        is_child=True,
    )
