"""Which divergence a setting means: a file of ``losses`` by its name, alone or with settings of its own."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compress import plugins
from compress.errors import nearest
from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution

LOSSES = "distill.losses"

_WORDS = {
    "Input should be": "must be",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping",
    "a valid number": "a number",
}
"""What pydantic says, and what is said instead."""

Divergence = Callable[["Distribution", "Distribution"], "tuple[Tensor, Tensor]"]
"""The student's and the teacher's distributions → divergences ``[N]``, gradients in the student's logits ``[N, V]``.
It overwrites neither."""


def named(setting: str | Mapping[str, Any]) -> Divergence:
    """Return the divergence of a setting that is valid."""
    module, settings = chosen(setting)
    return partial(module.divergence, config=settings)


def chosen(setting: str | Mapping[str, Any]) -> tuple[Any, StepConfig]:
    """Return the module of a setting, ``jsd`` or ``{use: jsd, beta: 0.1}``, and its settings.

    Raises `ValueError` with what is allowed.
    """
    given = {"use": setting} if isinstance(setting, str) else dict(setting)
    name, allowed = given.pop("use", None), plugins.available(LOSSES)
    if name is None:
        raise ValueError(f"`use` says which divergence; allowed are {', '.join(allowed)}")
    if name not in allowed:
        raise ValueError(
            f"no divergence is called '{name}'{nearest(str(name), allowed)} Allowed: {', '.join(allowed)}"
        )
    module = plugins.load(LOSSES, name)
    if unknown := given.keys() - module.Config.model_fields.keys():
        keys = list(module.Config.model_fields)
        key = sorted(unknown)[0]
        can = f"{nearest(key, keys)} Allowed: {', '.join(keys)}" if keys else ": it has no settings"
        raise ValueError(f"'{key}' is not a key of {name}{can}")
    try:
        return module, module.Config.model_validate(given)
    except ValidationError as error:
        raise ValueError(_said(name, error.errors()[0])) from error


def _said(name: str, error: ErrorDetails) -> str:
    """Return what is wrong with a divergence's settings, with the value it is about."""
    where = ".".join([name, *map(str, error["loc"])])
    if error["type"] == "missing":
        return f"{name} needs `{error['loc'][-1]}`"
    if error["type"] == "too_short":
        return f"{where} needs {error['ctx']['min_length']} or more entries"
    said = error["msg"].removeprefix("Value error, ").split(", unable to parse")[0]
    for pydantic, plain in _WORDS.items():
        said = said.replace(pydantic, plain)
    return (
        f"{where}: {said}"
        if "found" in said
        else f"{where}: {said}, found {json.dumps(error['input'], default=repr)}"
    )
