"""How a YAML name becomes code, and what that code promises.

The name **is** the module: step ``prune.width`` is ``compress/prune/width.py``; a step named after its folder,
``distill``, is ``compress/distill/step.py``; importance ``activation`` is
``compress/prune/importance/activation.py``. Another distribution adds one through the entry-point group
``compress.plugins``, with the dotted name as the entry's name (``prune.magic``, ``prune.importance.taylor``).

Step modules are imported by the planner, so their top level imports neither torch nor transformers: what
is heavy lives in sibling modules that `run` imports.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Protocol, cast, get_args

from pydantic import BaseModel, ConfigDict

from compress.errors import InputError, nearest
from compress.records import Artifact, Measurement, ModelSpec, Outcome, Work

STEP_FOLDERS = ("train", "prune", "distill", "quantize", "export")
"""The rooms that hold what a pipeline's ``steps:`` may use."""

GROUP = "compress.plugins"


class StepConfig(BaseModel):
    """The base of every plugin's settings: immutable, documented per field, no unknown keys, numbers all finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Reference:
    """Marks a setting that names another node: an edge of the plan."""

    def __init__(self, to: Literal["model", "data"]) -> None:
        self.to = to


ModelRef = Annotated[str, Reference("model")]
"""A step's name, or ``original``. The artifact arrives in ``context.inputs`` under the field's name."""

DataRef = Annotated[str, Reference("data")]
"""A name under the pipeline's ``data:``. Its `tokens` artifact arrives under the field's name."""


class Manner:
    """Marks a setting that changes how work is done and not its result: it is in no key.

    Not a bit of it, or, like `launch`, only the last bits: then the record says so.
    """


def manners(config: type[BaseModel]) -> set[str]:
    """Return which fields of a step's settings do not change its result."""
    fields = config.model_fields.items()
    return {name for name, field in fields if any(isinstance(mark, Manner) for mark in field.metadata)}


def references(config: type[BaseModel]) -> dict[str, Literal["model", "data"]]:
    """Return which fields of a step's settings can be edges, and to what.

    A field may be optional (``DataRef | None``): it is an edge where it has a value.
    """
    found: dict[str, Literal["model", "data"]] = {}
    for name, field in config.model_fields.items():
        parts = (
            metadata for part in get_args(field.annotation) for metadata in getattr(part, "__metadata__", ())
        )
        for mark in (*field.metadata, *parts):
            if isinstance(mark, Reference):
                found[name] = mark.to
    return found


def references_of(config: BaseModel) -> dict[str, Literal["model", "data"]]:
    """Return which fields of these settings are edges, and to what."""
    return {name: to for name, to in references(type(config)).items() if getattr(config, name) is not None}


@dataclass(frozen=True)
class Prepared:
    """Work a step wants done before it, as a result of its own: shared, cached and shown."""

    use: str
    """The module that does it, such as ``prune.scores``; usually an internal one. It may have
    ``settle(config, num_tokens) -> config``: settings that make no difference for so many tokens of data are made the
    same, so that what is the same has one key."""
    config: StepConfig
    """Its settings. References in them are resolved as a step's are."""
    on: str | None = None
    """Which of the step's `ModelRef` settings names the model it is made from (``teacher``); ``None``: the parent."""


@dataclass(frozen=True)
class Planned:
    """A step as its plan has it: what a module can give advice about."""

    name: str
    config: StepConfig
    work: Work
    inputs: Mapping[str, str]
    """The key of each input, by the setting that names it."""
    specs: Mapping[str, ModelSpec]
    """The spec of each input that is a model."""
    num_tokens: Mapping[str, int]
    """How many tokens each input that is data has at most, where its settings say."""
    reads_alike: frozenset[str]
    """The inputs that are models and whose vocabulary is that of the step's data."""
    parent: str | None = None
    """The key of what the step starts from."""
    measured_on: frozenset[str] = frozenset()
    """The inputs that are data on which the pipeline measures."""


def row_length(inputs: Mapping[str, ModelSpec], name: str = "data", usual: int = 2_048) -> int:
    """Return how many tokens a row of an input has, where the plan knows, else what is usual."""
    return inputs.row_lengths.get(name, usual) if isinstance(inputs, PlannedInputs) else usual


def prepared(module: Any, config: StepConfig) -> dict[str, Prepared]:
    """Return what a module wants done before it, by the name its `run` finds it under; most want nothing."""
    asked: dict[str, Prepared] = module.prepare(config) if hasattr(module, "prepare") else {}
    return asked


def needed(module: Any, config: StepConfig) -> tuple[str, ...]:
    """Return the names of all inputs a module finds beside its parent: its references and what it prepares."""
    return (*references_of(config), *prepared(module, config))


class Context(Protocol):
    """What the engine gives a running step or measurement."""

    @property
    def folder(self) -> Path:
        """Where to write the result. Committed as a whole when `run` returns, dropped when it raises."""

    @property
    def partial(self) -> Path:
        """Where to keep work that must survive a kill. The same folder on resume; deleted on commit."""

    @property
    def inputs(self) -> Mapping[str, Artifact]:
        """The artifacts named by the settings (``teacher``, ``data``) and by `prepare`, beside the parent."""

    @property
    def seed(self) -> int: ...

    @property
    def stopping(self) -> bool:
        """True once the run was asked to stop: save to `partial`, then call `stop`."""

    def stop(self) -> None:
        """Leave the step (raises); everything in `partial` is kept for the next run."""

    def stop_takes(self, seconds: float) -> None:
        """Say how long saving may take, so that the run waits for it when it is stopped."""

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        """Report how far the step is; `figures` are shown beside it (``loss=2.31``). Cheap: call it often."""

    def warn(self, message: str) -> None:
        """Tell the user, and write into the record, what could not be done as asked."""

    def submit(
        self,
        use: str,
        settings: Mapping[str, Any],
        parent: Artifact,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        """Return what another module makes of `parent`: from the store, or done now in a process of its own.

        For work that only a running step knows of (a search's candidates). It is keyed as a planned node is, so a
        resumed or another run finds it. `inputs` holds an artifact for every reference in its settings and all it
        prepares. What it raised is raised here. Submitted work submits nothing itself.
        """


class Step(Protocol):
    """A module that turns one artifact into another.

    It may also define ``prepare(config) -> dict[str, Prepared]``: work on the step's own parent, or on a model it
    names, that is done before it and arrives in ``context.inputs`` under the given names. Steps that ask for the same
    share it.

    A step with ``REWRITES_TOKENIZER = True`` gives its result a tokenizer of its own: data for what is built on it is
    tokenized with that.

    A step that decides a shape by measuring has ``shape_is_measured(config) -> bool``: where it is true, what `predict`
    returns is a guess, and the plan says "about" of it and of all that is built on it.

    A module may have ``advise(steps: Sequence[Planned]) -> list[str]``: what could be had for less, given all steps of
    the plan that use it and are not done; a line each, shown below the plan.

    A module may have ``chat_template_for(config) -> str | None``: the setting for which a step needs a chat template,
    that of its data or else of its parent's tokenizer. The plan refuses it where neither has one.

    A module with ``COMPUTES = False`` makes the same of its inputs on every machine: neither the device nor PyTorch's
    version is in its keys, and what a machine without GPUs made of it is found on one with them.

    A module with the line ``INTERNAL = True`` is no YAML name: it is only prepared or submitted by others. Where it
    makes no model it needs no `predict`, `estimate` or `rehearse`.
    """

    Config: type[StepConfig]
    VERSION: int
    ACCEPTS: tuple[str, ...]
    PRODUCES: str

    def predict(self, spec: ModelSpec, config: Any) -> ModelSpec:
        """Return the exact result from the settings alone. Raises `InputError` for an impossible target."""

    def estimate(self, spec: ModelSpec, config: Any, inputs: Mapping[str, ModelSpec]) -> Work:
        """Return roughly what running takes. `inputs` are the specs of referenced models, see `texts_of` for data."""

    def rehearse(self, config: Any) -> Any:
        """Return the settings made tiny for ``--test``."""

    def run(self, parent: Artifact, config: Any, context: Context) -> Outcome:
        """Write the result into ``context.folder``."""


@dataclass(frozen=True)
class Text:
    """Packed data, as far as its settings tell."""

    row_tokens: int
    rows: int | None
    """``None`` is all there are."""


class PlannedInputs(dict[str, ModelSpec]):
    """What a step's estimate is told of its inputs: the specs of those that are models, by the setting that names them.

    `texts` are those that are packed data.
    """

    def __init__(self, specs: Mapping[str, ModelSpec], texts: Mapping[str, Text]) -> None:
        super().__init__(specs)
        self.texts = texts

    @property
    def row_lengths(self) -> Mapping[str, int]:
        """How many tokens a row of each text has."""
        return {name: text.row_tokens for name, text in self.texts.items()}


def texts_of(inputs: Mapping[str, ModelSpec]) -> Mapping[str, Text]:
    """Return what is known of the packed data among a step's inputs; nothing where only specs were given."""
    return inputs.texts if isinstance(inputs, PlannedInputs) else {}


@dataclass(frozen=True)
class Measured:
    """A model as its plan has it: what a measurement's estimate goes by."""

    kind: str
    """Of its artifact, such as ``hf`` or ``onnx``."""
    spec: ModelSpec
    specs: Mapping[str, ModelSpec]
    """The spec of each input that is a model."""
    texts: Mapping[str, Text]
    """Each input that is packed data."""


class Measure(Protocol):
    """A module that measures a model artifact through its backend."""

    Config: type[StepConfig]
    VERSION: int

    def estimate(self, measured: Measured, config: Any) -> Work:
        """Return roughly what measuring takes."""

    def measure(self, artifact: Artifact, config: Any, context: Context) -> list[Measurement]: ...


def step(name: str) -> Step:
    """Return the step module a ``use:`` names. Raises `InputError` with the nearest match."""
    if name not in step_names():
        raise InputError(
            f"no step is called '{name}'{nearest(name, step_names())} Allowed: {', '.join(step_names())}"
        )
    return cast(Step, internal(name))


def internal(name: str) -> ModuleType:
    """Return any step-shaped module of the package (``data.pack``, ``train.initialize``) or an entry point."""
    for entry in _entry_points().select(name=name):
        return cast(ModuleType, entry.load())
    module = f"compress.{name}" if "." in name else f"compress.{name}.step"
    return importlib.import_module(module)


def load(folder: str, name: str) -> ModuleType:
    """Return the plugin of that name in a folder given as ``prune.importance``. Raises `InputError`."""
    allowed = available(folder)
    if name not in allowed:
        what = folder.rsplit(".", 1)[-1]
        raise InputError(
            f"no {what} is called '{name}'{nearest(name, allowed)} Allowed: {', '.join(allowed)}"
        )
    return internal(f"{folder}.{name}")


def available(folder: str) -> list[str]:
    """Return the names of a folder's plugins (modules holding one), sorted, without importing them."""
    spec = importlib.util.find_spec(f"compress.{folder}")
    own = [
        m.name for m in pkgutil.iter_modules(spec.submodule_search_locations if spec else None) if not m.ispkg
    ]
    prefix = f"{folder}."
    others = [e.name.removeprefix(prefix) for e in _entry_points() if e.name.startswith(prefix)]
    return sorted({*own, *(name for name in others if "." not in name)})


@cache
def step_names() -> tuple[str, ...]:
    """Return every name ``use:`` may have, sorted."""
    return tuple(sorted(_step_names()))


@cache
def _entry_points() -> EntryPoints:
    return entry_points(group=GROUP)


def _step_names() -> Iterator[str]:
    for folder in STEP_FOLDERS:
        for name in available(folder):
            qualified = folder if name == "step" else f"{folder}.{name}"
            if _is_step(qualified):
                yield qualified


def _is_step(name: str) -> bool:
    """A module is a step when its source defines ``PRODUCES`` and is not ``INTERNAL``; reading avoids importing it."""
    entries = _entry_points().select(name=name)
    module = next((e.module for e in entries), f"compress.{name}" if "." in name else f"compress.{name}.step")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return bool(entries)  # an entry point without its module: using it says what is wrong
    source = Path(spec.origin).read_text(encoding="utf-8")
    return "\nPRODUCES" in source and "\nINTERNAL = True" not in source
