"""A pipeline as a graph: what will be made from what, under which key, how large it will be.

Nodes are steps, measurements and data; edges are artifacts. Everything here is decided from the pipeline file and
the model's configuration: no weights are read and nothing is run.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from compress.plugins import StepConfig, Text
from compress.records import Artifact, JsonValue, ModelSpec, Record, Work

Role = Literal["original", "student", "baseline", "data", "internal", "measurement"]


class Node(Record):
    """One unit of work: call module `use` on the parent's artifact with `config`.

    `given` is the artifact itself when nothing has to be done (a local checkpoint).
    """

    name: str
    use: str
    role: Role
    kind: str
    key: str
    config: SerializeAsAny[StepConfig]
    parent: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    spec: ModelSpec | None = None
    work: Work = Work()
    is_about: bool = False
    """Whether `spec` is a guess: a shape on the way here is decided by measuring."""
    ingredients: dict[str, JsonValue] = Field(default_factory=dict)
    given: Artifact | None = None
    rival_of: tuple[str, ...] = ()
    """The candidates that this baseline is the original of, in their runtime: made by the same steps, uncompressed."""
    is_link: bool = False
    """Whether it is a step before the last of a baseline of several steps: not shown by itself."""

    @property
    def edges(self) -> tuple[str, ...]:
        """The names of all nodes this one needs."""
        return ((self.parent,) if self.parent else ()) + tuple(self.inputs.values())

    @property
    def is_model(self) -> bool:
        """Whether the node is one of the pipeline's own models: shown in the report, and measured."""
        return self.role in ("original", "student", "baseline")

    @property
    def text(self) -> Text | None:
        """What is known of packed data before they are there."""
        length = getattr(self.config, "sequence_length", None)
        return None if length is None else Text(int(length), getattr(self.config, "wanted_rows", None))

    @property
    def num_tokens(self) -> int | None:
        """How many tokens there are at most, of data whose settings say so."""
        rows = getattr(self.config, "wanted_rows", None)
        return None if rows is None else rows * int(self.config.sequence_length)  # type: ignore[attr-defined]

    @property
    def about(self) -> str:
        """The model a measurement measures: ``recover/quality`` is about ``recover``."""
        return self.name.rpartition("/")[0] if self.role == "measurement" else self.name


class Plan(Record):
    """All nodes, parents first."""

    nodes: tuple[Node, ...]
    rehearsal: bool = False
    assumed: tuple[str, ...] = ()
    """What was not looked up on the hub, in words. A plan that assumes anything is shown and never run: no key of what
    depends on it is that of a result."""
    remarks: tuple[str, ...] = ()
    """What planning noticed and a reader should know, a line each."""
    goals: frozenset[str] = frozenset()
    """Nodes that are wanted for themselves, beside models and measurements: data to be made beforehand."""

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def models(self) -> tuple[Node, ...]:
        """The nodes whose results are candidates or rivals."""
        return tuple(node for node in self.nodes if node.is_model)

    def measurements_of(self, name: str) -> tuple[Node, ...]:
        """The measurements of one model."""
        return tuple(n for n in self.nodes if n.role == "measurement" and n.about == name)

    def prepared_for(self, name: str) -> tuple[Node, ...]:
        """What a step or what measures it had prepared of a model it names, unless for an earlier step too."""
        earlier: set[str] = set()
        for model in self.models:
            own = {
                name for node in (model, *self.measurements_of(model.name)) for name in self._prepared(node)
            }
            if model.name == name:
                return tuple(n for n in self.nodes if n.name in own - earlier)
            earlier |= own
        return ()

    def model_before(self, node: Node) -> str | None:
        """The model that a node was made from, through the steps of a chain; None where it was made from none."""
        before = node.parent
        while before is not None and self[before].is_link:
            before = self[before].parent
        return before if before is not None and self[before].is_model else None

    def missing(self, is_there: Callable[[Node], bool]) -> tuple[Node, ...]:
        """What has to be done: models and measurements that are not there, and what those need and is not either."""
        missing: list[Node] = []
        needed: set[str] = set()
        for node in reversed(self.nodes):
            is_asked_for = node.is_model or node.role == "measurement" or node.name in self.goals
            wanted = is_asked_for or node.name in needed
            if wanted and not is_there(node):
                missing.append(node)
                needed.update(node.edges)
        return tuple(reversed(missing))

    @property
    def data(self) -> dict[str, frozenset[str]]:
        """The nodes of each ``data:`` entry that is used, by its name: one for every tokenizer it is read with."""
        found: dict[str, set[str]] = {}
        for node in self.nodes:
            if node.use == "data.pack" and node.role == "data":
                found.setdefault(node.name.split("/")[1], set()).add(node.name)
        return {name: frozenset(nodes) for name, nodes in found.items()}

    def until(self, step: str) -> "Plan":
        """The plan cut after a step: it, all it needs, and the measurements of those models.

        Cut after a ``data:`` entry it is that data as the original's tokenizer reads it, or where only others do as the
        first of them, and what it needs: nothing is measured.
        """
        if step not in {model.name for model in self.models}:
            return self._until_data(self.data[step])
        position = {node.name: index for index, node in enumerate(self.nodes)}
        keep: set[str] = set()
        for name in [m.name for m in self.models if position[m.name] <= position[step]]:
            keep |= {name, *self._ancestors(name)}
            for measurement in self.measurements_of(name):
                keep |= {measurement.name, *self._ancestors(measurement.name)}
        return self.model_copy(update={"nodes": tuple(n for n in self.nodes if n.name in keep)})

    def _until_data(self, entry: frozenset[str]) -> "Plan":
        goal = next(node.name for node in self.nodes if node.name in entry)
        keep = {goal, *self._ancestors(goal)}
        nodes = tuple(node for node in self.nodes if node.name in keep)
        return self.model_copy(update={"nodes": nodes, "goals": frozenset({goal})})

    def after(self, step: str) -> tuple[Node, ...]:
        """A step and everything that depends on it."""
        reached = {step}
        for node in self.nodes:
            if reached.intersection(node.edges):
                reached.add(node.name)
        return tuple(n for n in self.nodes if n.name in reached)

    def _prepared(self, node: Node) -> Iterator[str]:
        if node.parent is not None and (before := self[node.parent]).is_link:
            yield before.name
            yield from self._prepared(before)
        for given in (self[name] for name in node.inputs.values()):
            if given.role == "internal" and given.parent in node.edges:
                yield given.name
                yield from self._prepared(given)

    def _ancestors(self, name: str) -> Iterator[str]:
        for edge in self[name].edges:
            yield edge
            yield from self._ancestors(edge)


def why_not_cached(node: Node, earlier: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why a node has to run, from the ingredients of the same name in an earlier plan."""
    before = earlier.get(node.name)
    if before is None:
        return "new"
    changes = list(_changes(before, node.ingredients))
    return "; ".join(changes) if changes else "not finished"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in now:
        old, new = before.get(name), now[name]
        if old == new:
            continue
        if name == "settings" and isinstance(old, dict):
            yield from (f"{k}: {old.get(k)} → {v}" for k, v in new.items() if old.get(k) != v)
        elif name == "parent":
            yield "its input changed"
        elif name == "inputs":
            changed = [k for k, v in new.items() if (old or {}).get(k) != v]
            yield f"{', '.join(changed)} changed"
        else:
            yield f"{name}: {old} → {new}"
