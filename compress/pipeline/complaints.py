"""What validation found wrong with a piece of the file, in words for someone new to the program."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.errors import nearest
from compress.pipeline.source import KeyPath, describe

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (indented 'key: value' lines)",
    "model_type": "a mapping (indented 'key: value' lines)",
    "path_type": "a path",
    "none_required": "nothing",
}

_LIMITS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs {min_length} or more entries",
    "too_long": "takes {max_length} entries or fewer",
    "string_too_short": "must not be empty",
}


def complaints(
    error: ValidationError, model: type[BaseModel], data: Any, owner: str, beside: Sequence[str] = ()
) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path inside `data` and the message of everything `error` holds, each once.

    `owner` is what the whole is called (``evaluate``, ``prune.width``); `beside` are further keys allowed at
    its top. A setting that may be several things fails once for each of them; these become one message.
    """
    expected: dict[KeyPath, list[str]] = {}
    seen: set[tuple[KeyPath, str]] = set()
    everything = [(_written_path(details, data), details) for details in error.errors(include_url=False)]
    for path, details in everything:
        if details["type"] == "too_short" and any(
            other[: len(path)] == path != other for other, _ in everything
        ):
            continue  # only entries that are right are counted, and the wrong ones are named anyway
        if details["type"] in _EXPECTED or details["type"] in ("literal_error", "enum"):
            expected.setdefault(path, []).append(_wanted(details))
            continue
        message = _message(details, model, path, owner, beside)
        if (path, message) not in seen:
            seen.add((path, message))
            yield path, message
    for path, wanted in expected.items():
        value = _at(data, path)
        choices = re.findall(r"'([^']*)'", " ".join(wanted))
        hint = nearest(value, choices).removesuffix(".") if isinstance(value, str) else ""
        yield path, f"expected {' or '.join(dict.fromkeys(wanted))}, found {describe(value)}{hint}"


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys a model has in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def unknown_key(key: str, owner: str, allowed: Sequence[str]) -> str:
    """Return the message for a key that does not exist."""
    return f"'{key}' is not a key of {owner}{nearest(key, allowed)} Allowed: {', '.join(allowed)}"


def missing_key(key: str, owner: str, purpose: str | None = None) -> str:
    """Return the message for a required key that is not there."""
    return f"{owner} needs the key '{key}'" + (f": {_first_sentence(purpose)}" if purpose else "")


def _message(
    details: ErrorDetails, model: type[BaseModel], path: KeyPath, owner: str, beside: Sequence[str]
) -> str:
    kind, context = details["type"], details.get("ctx", {})
    inner = [str(part) for part in path[:-1] if isinstance(part, str)]
    owner = inner[-1] if inner else owner
    if kind == "extra_forbidden":
        here = [key for m in _models_at(model, details["loc"][:-1]) for key in keys_of(m)]
        return unknown_key(str(path[-1]), owner, [*([] if inner else beside), *dict.fromkeys(here)])
    if kind == "missing":
        key = str(details["loc"][-1])
        fields = [
            f
            for m in _models_at(model, details["loc"][:-1])
            for n, f in m.model_fields.items()
            if key in (n, f.alias)
        ]
        return missing_key(key, _whole(path) or owner, fields[0].description if fields else None)
    found = describe(details["input"])
    if kind == "union_tag_not_found":
        return missing_key(context["discriminator"].strip("'"), _whole(path))
    if kind == "union_tag_invalid":
        choices = context["expected_tags"].replace("'", "").split(", ")
        key, tag = context["discriminator"].strip("'"), str(context["tag"])
        return f"{key} cannot be '{tag}'{nearest(tag, choices)} Allowed: {', '.join(choices)}"
    if kind in _LIMITS:
        limits = {key: int(n) if isinstance(n, float) and n.is_integer() else n for key, n in context.items()}
        return f"{_LIMITS[kind].format(**limits)}, found {context.get('actual_length', found)}"
    said = (
        str(context["error"]) if "error" in context else details["msg"].replace("Input should be", "expected")
    )
    is_told = isinstance(details["input"], dict | list) or "found" in said or str(details["input"]) in said
    return said if is_told else f"{said}, found {found}"


def _whole(path: KeyPath) -> str:
    """Return what to call the mapping at a path, or nothing for the top."""
    is_entry = len(path) > 1 and isinstance(path[-1], int)
    return f"an entry of {path[-2]}" if is_entry else str(path[-1]) if path else ""


def _wanted(details: ErrorDetails) -> str:
    if details["type"] in _EXPECTED:
        return _EXPECTED[details["type"]]
    return str(details["ctx"]["expected"])


def _written_path(details: ErrorDetails, data: Any) -> KeyPath:
    """Return the part of an error's location that stands in the file, without the marks of unions."""
    path: list[str | int] = []
    for part in details["loc"]:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]  # type: ignore[index]  # `part` is a key of this dict or an index of this list
            path.append(part)
    return tuple(path)


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """Return the models that may stand at a location; several where a setting may be one of several."""
    models = [model]
    for part in location:
        named = [m for m in models if m.__name__ == part]
        fields = [f for m in models for name, f in m.model_fields.items() if part in (name, f.alias)]
        if fields:
            models = [m for field in fields for m in _models_in(field.annotation)]
        elif named:
            models = named
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _first_sentence(text: str) -> str:
    sentence = re.split(r"\.(?:\s|$)", " ".join(text.replace("``", "'").replace("`", "'").split()))[0]
    return (
        sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() or sentence[1:2] == " " else sentence
    )
