"""Which divergence a setting means: a file of ``losses`` by its name, alone or with settings of its own."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compress import plugins
from compress.errors import nearest
from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution

LOSSES = "distill.losses"

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
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
