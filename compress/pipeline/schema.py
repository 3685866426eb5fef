"""A pipeline file validated as a whole: its sections, the settings of every plugin named, who builds on whom.

All mistakes of a file are gathered before anything is raised. Settings are validated as JSON, strictly: a
quoted ``"3"`` is text, ``true`` is no number, and a user is told so instead of being guessed at.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from compress import plugins
from compress.errors import InputError, nearest
from compress.pipeline.complaints import complaints, keys_of, missing_key
from compress.pipeline.sections import (
    DEMO_DATA,
    DEMO_TASKS,
    MEASUREMENTS,
    ORIGINAL,
    Baseline,
    ChainShape,
    Cost,
    DataShape,
    DataSource,
    Document,
    Evaluate,
    Gates,
    Header,
    ModelSource,
    Pipeline,
    Profile,
    StepEntry,
    StepShape,
)
from compress.pipeline.source import KeyPath, Source, describe, read_source

__all__ = [
    "DEMO_DATA",
    "DEMO_TASKS",
    "MEASUREMENTS",
    "ORIGINAL",
    "Baseline",
    "Cost",
    "DataSource",
    "Evaluate",
    "Gates",
    "ModelSource",
    "Pipeline",
    "Profile",
    "StepEntry",
    "load_pipeline",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STEP_KEYS = ("name", "use", "from", "measure")
_CHAIN_KEYS = ("name", "from")
_DATA_KEYS = tuple(keys_of(DataShape))

M = TypeVar("M", bound=BaseModel)


def load_pipeline(path: Path | str, overrides: Sequence[str] = ()) -> Pipeline:
    """Return the pipeline in a YAML file with ``key=value`` overrides put in.

    Paths inside are taken from the file's folder. Raises `InputError` with every mistake found, one a line,
    each with its place, what is allowed and the nearest match.
    """
    source = read_source(Path(path)).override(overrides)
    return _Reader(source, Path(path).absolute().parent).pipeline(Path(path))


class _Reader:
    """Validates one source piece by piece and gathers what is wrong."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.wrong: list[tuple[KeyPath, str]] = []

    def pipeline(self, path: Path) -> Pipeline:
        raw = self.source.data
        document = self.validate(Document, raw, (), "a pipeline")
        self.check_name(raw.get("name"), ("name",))
        texts = _mapping(raw.get("data", DEMO_DATA))
        data = dict(self.data_sources(texts))
        rivals = [self.baseline(item, ("baselines", i)) for i, item in _entries(raw, "baselines")]
        steps = [self.step(item, ("steps", i), self.default_parent(i)) for i, item in _entries(raw, "steps")]
        self.check_names()
        self.check_references(list(texts))
        if self.wrong or document is None:
            raise InputError("\n".join(self.messages()))
        common = {name: getattr(document, name) for name in Header.model_fields}
        pipeline = Pipeline(
            **common,
            data=data,
            baselines=tuple(filter(None, rivals)),
            steps=tuple(filter(None, steps)),
            path=path,
            text=self.source.text,
        )
        pipeline._source = self.source
        return pipeline

    def messages(self) -> Iterator[str]:
        """Yield every message in the order of the file."""
        for path, message in sorted(self.wrong, key=lambda item: self.source.order(item[0])):
            is_unknown_key = bool(path) and message.startswith(f"'{path[-1]}' is not a key")
            address = self.address(path[:-1] if is_unknown_key else path)
            yield f"{self.source.where(path)}: {address + ': ' if address else ''}{message}"

    def address(self, path: KeyPath) -> str:
        """Return a path as ``--set`` would write it, entries by their names: ``steps.recover.tokens``."""
        parts, value = [], self.source.data
        for part in path:
            value = value[part] if isinstance(value, list) or part in value else {}
            name = value.get("name") if isinstance(value, dict) and isinstance(part, int) else None
            parts.append(name if isinstance(name, str) else str(part))
        return ".".join(parts)

    def complain(self, path: KeyPath, message: str) -> None:
        self.wrong.append((path, message))

    def validate(
        self, model: type[M], data: Any, path: KeyPath, owner: str, beside: Sequence[str] = ()
    ) -> M | None:
        """Return `data` as a model with its paths made absolute, or `None` after noting what is wrong."""
        try:
            valid: M = _anchored(model.model_validate_json(json.dumps(data), strict=True), self.folder)
            return valid
        except ValidationError as error:
            for inner, message in complaints(error, model, data, owner, beside):
                self.complain((*path, *inner), message)
            return None

    def data_sources(self, raw: Mapping[str, Any]) -> Iterator[tuple[str, DataSource]]:
        for name, entry in raw.items():
            path: KeyPath = ("data", name)
            self.check_name(name, path)
            if not isinstance(entry, dict):
                continue  # the document's own validation has said so
            module = self.plugin(entry, path, "source", plugins.available("data.sources"), "a data source")
            if module is None:
                continue
            source = plugins.load("data.sources", module)
            own = {key: value for key, value in entry.items() if key in _DATA_KEYS}
            rest = {key: value for key, value in entry.items() if key not in _DATA_KEYS}
            settings = self.validate(source.Config, rest, path, f"data source {module}", _DATA_KEYS)
            head = self.validate(DataShape, own, path, "a data source")
            is_limited = bool({"samples", "tokens"} & own.keys())
            if settings is not None and not is_limited and _is_endless(source, settings):
                self.complain(
                    path, f"the source '{module}' never ends; say how much to take with samples or tokens"
                )
            if settings is not None and head is not None:
                yield name, DataSource(**dict(head), settings=settings)

    def baseline(self, entry: dict[str, Any], path: KeyPath) -> Baseline | None:
        if "steps" in entry:
            return self.chain(entry, path)
        if "use" in entry:
            step = self.step(entry, path, ORIGINAL)
            return None if step is None else Baseline(name=step.name, steps=(step,))
        rest = {key: value for key, value in entry.items() if key != "name"}
        if not {"path", "id", "config"} & rest.keys():
            self.complain(
                path, "a baseline needs a checkpoint ('id' or 'path') or a step ('use', or 'steps')"
            )
            return None
        source = self.validate(ModelSource, rest, path, "a baseline that is a checkpoint", ["name"])
        return None if source is None else Baseline(name=str(entry.get("name")), source=source)

    def chain(self, entry: dict[str, Any], path: KeyPath) -> Baseline | None:
        """Return a baseline of several steps; those before the last are called after it and their place."""
        own = {key: value for key, value in entry.items() if key not in _CHAIN_KEYS}
        shape = self.validate(ChainShape, own, path, "a baseline of several steps", _CHAIN_KEYS)
        name, parent = str(entry.get("name")), str(entry.get("from", ORIGINAL))
        links = []
        for index, link in _entries(entry, "steps"):
            links.append(self.link(link, (*path, "steps", index), parent, f"{name}/{index + 1}"))
            parent = f"{name}/{index + 1}"
        if shape is None or not all(links):
            return None
        *before, last = filter(None, links)
        last = last.model_copy(update={"name": name, "measure": shape.measure})
        return Baseline(name=name, steps=(*before, last))

    def link(self, entry: dict[str, Any], path: KeyPath, parent: str, name: str) -> StepEntry | None:
        """Return one step of a chain: it has no keys beside `use` and its settings."""
        use = self.plugin(entry, path, "use", plugins.step_names(), "a step")
        if use is None:
            return None
        rest = {key: value for key, value in entry.items() if key != "use"}
        config = self.validate(plugins.step(use).Config, rest, path, use, ("use",))
        if config is None:
            return None
        return StepEntry(name=name, use=use, parent=parent, config=config, where=self.source.where(path))

    def step(self, entry: dict[str, Any], path: KeyPath, parent: str) -> StepEntry | None:
        use = self.plugin(entry, path, "use", plugins.step_names(), "a step")
        if use is None:
            return None
        rest = {key: value for key, value in entry.items() if key not in _STEP_KEYS}
        config = self.validate(plugins.step(use).Config, rest, path, use, _STEP_KEYS)
        own = {key: entry[key] for key in keys_of(StepShape) if key in entry}
        shape = self.validate(StepShape, own, path, "a step")
        if config is None or shape is None:
            return None
        return StepEntry(
            **dict(shape),
            name=str(entry.get("name")),
            use=use,
            parent=str(entry.get("from", parent)),
            config=config,
            where=self.source.where(path),
        )

    def plugin(
        self, entry: Mapping[str, Any], path: KeyPath, key: str, allowed: Sequence[str], what: str
    ) -> str | None:
        """Return the plugin an entry names under `key`, or `None` after noting that there is none."""
        name = entry.get(key)
        if key not in entry:
            self.complain(path, f"{missing_key(key, what)}. Allowed: {', '.join(allowed)}")
        elif name not in allowed:
            found = f"'{name}'" if isinstance(name, str) else describe(name)
            hint = nearest(name, allowed) if isinstance(name, str) else "."
            self.complain((*path, key), f"{what} cannot be {found}{hint} Allowed: {', '.join(allowed)}")
        else:
            return str(name)
        return None

    def default_parent(self, index: int) -> str:
        before = self.source.data["steps"][index - 1] if index else {"name": ORIGINAL}
        return str(before.get("name")) if isinstance(before, dict) else ORIGINAL

    def check_name(self, name: object, path: KeyPath) -> None:
        if isinstance(name, str) and not _NAME.fullmatch(name):
            self.complain(path, f"'{name}' cannot be a name; use letters, digits, '-' and '_', at most 64")

    def check_names(self) -> None:
        """Every step and baseline has a name of its own."""
        first: dict[str, KeyPath] = {}
        for path, entry in self.models():
            name = entry.get("name")
            if "name" not in entry:
                self.complain(path, missing_key("name", "a step" if path[0] == "steps" else "a baseline"))
            elif not isinstance(name, str):
                hint = "; put it in quotes" if isinstance(name, int | float) else ""
                self.complain((*path, "name"), f"expected text, found {describe(name)}{hint}")
            elif name == ORIGINAL:
                self.complain(
                    (*path, "name"), f"'{ORIGINAL}' is what the model at the top is called; choose another"
                )
            elif name in first:
                place = self.source.where(first[name])
                self.complain((*path, "name"), f"the name '{name}' is taken by {place}")
            else:
                self.check_name(name, (*path, "name"))
                first[name] = path

    def models(self) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
        """Yield all baselines, then all steps, as they are written."""
        for section in ("baselines", "steps"):
            for index, entry in _entries(self.source.data, section):
                yield (section, index), entry

    def check_references(self, data: Sequence[str]) -> None:
        """Every model that is named stands above; all data that is named is under ``data:``."""
        evaluate = _mapping(self.source.data.get("evaluate"))
        if "text" in evaluate:
            self.check_data(evaluate["text"], ("evaluate", "text"), data)
        else:
            self.check_data(Evaluate().text, ("data",), data, " (the default of evaluate.text)")
        earlier: dict[str, list[str]] = {"baselines": [ORIGINAL], "steps": [ORIGINAL]}
        for path, entry in self.models():
            section = str(path[0])
            if "from" in entry and {"use", "steps"} & entry.keys():
                self.check_model(entry["from"], (*path, "from"), earlier[section])
            for where, step in _with_links(path, entry):
                self.check_settings(step, where, data, earlier[section])
            if isinstance(entry.get("name"), str):
                earlier[section].append(entry["name"])

    def check_settings(
        self, entry: Mapping[str, Any], path: KeyPath, data: Sequence[str], earlier: Sequence[str]
    ) -> None:
        """Check what the settings of a step name."""
        for field, to, value in _references(entry):
            default = "" if field in entry else f" (the default of {entry['use']})"
            if to == "data":
                self.check_data(value, (*path, field), data, default)
            else:
                self.check_model(value, (*path, field), earlier)

    def check_data(self, name: object, path: KeyPath, known: Sequence[str], default: str = "") -> None:
        is_readable = isinstance(self.source.data.get("data", DEMO_DATA), dict)
        if isinstance(name, str) and name not in known and is_readable:
            there = ", ".join(known) or "none"
            self.complain(
                path, f"no data is called '{name}'{default}{nearest(name, known)} Under data: {there}"
            )

    def check_model(self, name: object, path: KeyPath, earlier: Sequence[str]) -> None:
        if not isinstance(name, str):
            found = f"expected the name of an earlier step, found {describe(name)}"
            self.complain(path, f"{found}. Allowed: {', '.join(earlier)}")
            return
        if name in earlier:
            return
        own, places = path[:2], {str(entry.get("name")): place for place, entry in self.models()}
        if name not in places:
            said = f"no earlier step is called '{name}'{nearest(name, earlier)}"
        elif places[name] == own:
            said = "a step cannot build on itself."
        elif places[name][0] != own[0]:
            said = f"'{name}' is one of the {places[name][0]}, and {own[0]} cannot build on those."
        else:
            said = f"'{name}' comes later in the file; a step builds on what stands above it."
        self.complain(path, f"{said} Allowed: {', '.join(earlier)}")


def _is_endless(source: Any, settings: Any) -> bool:
    return bool(plugins.internal("data.sources").is_endless(source, settings))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _entries(data: Mapping[str, Any], section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the entries of a list section that are mappings; the document's validation names the others."""
    entries = data.get(section)
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict):
            yield index, entry


def _with_links(path: KeyPath, entry: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield an entry and, of a baseline that is a chain, its steps, each with its place."""
    yield path, entry
    if path[0] == "baselines":
        yield from (((*path, "steps", index), link) for index, link in _entries(entry, "steps"))


def _references(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Yield field, kind and value of every setting of a step that names another node."""
    if entry.get("use") not in plugins.step_names():
        return
    config = plugins.step(entry["use"]).Config
    for field, to in plugins.references(config).items():
        if field in entry or not config.model_fields[field].is_required():
            value = entry.get(field, config.model_fields[field].default)
            if value is not None:
                yield field, to, value


def _anchored(value: Any, folder: Path, is_path: bool = False) -> Any:
    """Return a model, or a part of one, in which relative paths start from the pipeline file's folder.

    A path is what is typed so, and text in a field called ``path`` or ``paths``.
    """
    if is_path and isinstance(value, str):
        return str(folder / Path(value).expanduser())
    if isinstance(value, Path):
        return folder / value.expanduser()
    if isinstance(value, tuple | list):
        return type(value)(_anchored(item, folder, is_path) for item in value)
    if isinstance(value, BaseModel):
        fields = {name: (item, _anchored(item, folder, name in ("path", "paths"))) for name, item in value}
        return value.model_copy(update={name: new for name, (old, new) in fields.items() if new is not old})
    return value
