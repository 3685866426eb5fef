"""YAML text as plain data that remembers where every key stands, so that each mistake can be shown its line.

The file is composed into nodes and walked here rather than constructed by the library: that is what finds
duplicate keys, bounds aliases ("billion laughs") and keeps positions. Scalars follow YAML 1.2: ``1e-4`` is a
number, ``010`` is ten, and only ``true`` and ``false`` are booleans, so ``on``, ``no`` and dates stay text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from compress.errors import InputError, nearest

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]
"""Line and column, both from 1."""

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?\d[\d_]{0,20}"), lambda text: int(text.replace("_", ""))),
    "float": (
        re.compile(r"(?=.{1,40}$)[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d{1,2})?"),
        lambda text: float(text.replace("_", "")),
    ),
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
}


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  the library's own way to override


for _kind, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern.pattern})$"), None)


@dataclass(frozen=True)
class Source:
    """A pipeline file as data, with the place of every key.

    `positions` are those of keys and list items; `replaced` holds what ``--set`` put in their stead.
    """

    name: str
    text: str
    data: dict[str, Any]
    positions: Mapping[KeyPath, Position]
    replaced: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath = ()) -> str:
        """Return ``file:line:column`` of a key, or of the nearest thing around it that is written down."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.replaced:
                return f"--set {self.replaced[path[:length]]}"
            if path[:length] in self.positions:
                return place(self.name, self.positions[path[:length]])
        return self.name

    def order(self, path: KeyPath) -> Position:
        """Return what sorts messages in the order a reader meets them."""
        known = (self.positions[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.positions)
        return next(known, (0, 0))

    def override(self, overrides: Sequence[str]) -> "Source":
        """Return the source with ``key=value`` settings put in. Raises `InputError`."""
        data, replaced = apply_overrides(self.data, overrides)
        covered = {path for path in self.positions if any(path[: len(new)] == new for new in replaced)}
        positions = {path: place for path, place in self.positions.items() if path not in covered}
        return replace(self, data=data, positions=positions, replaced={**self.replaced, **replaced})


def read_source(path: Path) -> Source:
    """Return a pipeline file as data. Raises `InputError` for anything that is not one YAML mapping."""
    name, text = str(path), _read_text(path)
    positions: dict[KeyPath, Position] = {}
    data = _parse(text, name, positions)
    if data is None:
        raise InputError(
            f"{name}:1:1: the file is empty; a pipeline starts with 'version: 1', a name and a model"
        )
    if not isinstance(data, dict):
        found = describe(data)
        raise InputError(f"{place(name, positions[()])}: expected lines such as 'version: 1', found {found}")
    return Source(name, text, data, positions)


def apply_overrides(
    data: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return `data` with each ``key=value`` put in, and which paths now come from which override.

    Keys are dotted (``evaluate.samples``); an entry of a list is addressed by its ``name`` or its index
    (``steps.recover.tokens``, ``steps.1.tokens``). Values are YAML. A key that is absent is added: whether it
    may exist is the schema's to say. Raises `InputError` for a path that leads nowhere.
    """
    changed: dict[str, Any] = _copy(data)
    replaced: dict[KeyPath, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {override}: expected KEY=VALUE, such as steps.recover.tokens=1M")
        *parents, last = key.strip().split(".")
        container: Any = changed
        path: KeyPath = ()
        for part in parents:
            index = _index(container, part, path, override)
            path = (*path, index)
            if isinstance(container, dict) and container.get(index) is None:
                container[index] = {}
                replaced[path] = override
            container = container[index]
        index = _index(container, last, path, override)
        path = (*path, index)
        container[index] = _parse(text, f"--set {override}", {})
        replaced = {old: text for old, text in replaced.items() if old[: len(path)] != path} | {
            path: override
        }
    return changed, replaced


def place(name: str, position: Position) -> str:
    """Return ``file:line:column``; a command-line setting is one line and needs no position."""
    return name if name.startswith("--set ") else f"{name}:{position[0]}:{position[1]}"


def describe(value: object) -> str:
    """Return a value in plain words: ``the text 'abc'``, ``the number 3``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def _index(container: Any, part: str, path: KeyPath, override: str) -> str | int:
    """Return the key or list index a part of a dotted path means in its container."""
    here = ".".join(map(str, path)) or "the pipeline"
    if isinstance(container, dict):
        return part
    if not isinstance(container, list):
        raise InputError(f"--set {override}: {here} is {describe(container)} and holds no '{part}'")
    names = [item.get("name") if isinstance(item, dict) else None for item in container]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(container):
        return int(part)
    known = [name for name in names if isinstance(name, str)]
    allowed = [*known, *map(str, range(len(container)))]
    hint = nearest(part, known)
    raise InputError(
        f"--set {override}: {here} has no '{part}'{hint} Allowed: {', '.join(allowed) or 'it is empty'}"
    )


def _copy(value: Any) -> Any:
    """Return a deep copy of dicts and lists, in which an alias of the file is no longer shared."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _read_text(path: Path) -> str:
    if path.is_dir():
        files = sorted(p.name for p in path.glob("*.yaml"))
        raise InputError(
            f"{path}: is a folder, not a pipeline file. In it: {', '.join(files) or 'no .yaml file'}"
        )
    if not path.exists():
        files = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise InputError(f"{path}: there is no such file{nearest(path.name, files)}")
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if raw is None:
        raise InputError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; a pipeline file is a page of YAML")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = place(str(path), _position_of(raw[: error.start].decode("latin-1")))
        raise InputError(f"{where}: is not UTF-8 text; save the file as UTF-8") from error


def _position_of(before: str) -> Position:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _parse(text: str, name: str, positions: dict[KeyPath, Position]) -> Any:
    """Return the one YAML document in `text` as plain data, filling `positions`. Raises `InputError`."""
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        is_unclosed = "quoted" in (error.context or "")  # the end of the file helps nobody find the quote
        mark = (error.context_mark if is_unclosed else None) or error.problem_mark or error.context_mark
        where = place(name, (mark.line + 1, mark.column + 1) if mark else (1, 1))
        raise InputError(f"{where}: {_in_plain_words(error, text)}") from error
    except yaml.reader.ReaderError as error:
        where = place(name, _position_of(text[: error.position]))
        raise InputError(f"{where}: holds a control character; a pipeline is plain text") from error
    except RecursionError as error:
        raise InputError(f"{name}: is nested too deeply") from error
    return _Walk(name, positions).value(root, ()) if root else None


_PROBLEMS = {
    r"'\\t'": "a tab; YAML is indented with spaces",
    "mapping values are not allowed": "a ':' where no key can stand. Is this line, or the one above,"
    " indented as it should be? Text that holds ': ' needs quotes",
    "expected <block end>": "the indentation does not match the lines above",
    "could not find expected ':'": "expected 'key: value'; a ':' is missing on this line or the one above",
    "expected a single document": "a second document starts here ('---'); a pipeline file holds one",
    "expected ',' or": "a list or mapping that was opened with '[' or '{' is not closed, or a ',' is missing",
    "found unexpected end of stream": "a quotation mark was opened and never closed",
    "while scanning a quoted": "a quotation mark was opened and never closed",
    "undefined alias": "an alias (*name) whose anchor (&name) is not defined above",
    "cannot start any token": "a character that cannot start a value; put the text in quotes",
}


def _in_plain_words(error: yaml.MarkedYAMLError, text: str) -> str:
    """Return what the YAML library found, said for someone who does not know its vocabulary."""
    said = f"{error.context or ''}: {error.problem or ''}"
    mark = error.problem_mark
    if mark and text.splitlines()[mark.line : mark.line + 1] and "\t" in text.splitlines()[mark.line]:
        said = r"'\\t'"
    plain = (words for piece, words in _PROBLEMS.items() if piece in said)
    return next(plain, f"this is not valid YAML ({error.problem})")


@dataclass
class _Walk:
    """Turns nodes into data; counts them, because a few aliases can stand for billions."""

    name: str
    positions: dict[KeyPath, Position]
    num_nodes: int = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self.wrong(node, "aliases or nesting make this file far larger than a pipeline can be")
        self.positions.setdefault(path, _start(node))
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self.wrong_tag(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return {key: self.value(item, (*path, key)) for key, item in self.items(node, path)}

    def items(self, node: Any, path: KeyPath) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the keys of a mapping with their values' nodes, each key text and there once."""
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else key_node.value
            if not isinstance(key, str):
                raise self.wrong(key_node, f"a key must be text, found {describe(key)}; put it in quotes")
            if key in first:
                raise self.wrong(
                    key_node, f"the key '{key}' stands twice; it is already on line {first[key]}"
                )
            first[key], _ = self.positions[(*path, key)] = _start(key_node)
            yield key, value_node

    def scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return str(node.value)
        if kind not in _SCALARS:
            raise self.wrong_tag(node)
        pattern, construct = _SCALARS[kind]
        if not pattern.fullmatch(node.value):
            raise self.wrong(node, f"'{node.value}' is no {kind}")
        return construct(node.value)

    def wrong_tag(self, node: yaml.Node) -> InputError:
        return self.wrong(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed in a pipeline")

    def wrong(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{place(self.name, _start(node))}: {message}")


def _start(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1
