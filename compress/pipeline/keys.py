"""What a result's key is made of: one rule for planned nodes and for work submitted while a step runs.

The key is the `canonical_digest` of the ingredients, so that two keys that differ can be explained.
"""

from collections.abc import Mapping
from typing import Any

from compress import plugins
from compress.environment import NUMERICS, device_class, package_versions
from compress.plugins import StepConfig
from compress.records import JsonValue

KEY_VERSION = 1


def ingredients(
    use: str,
    config: StepConfig,
    parent: str | None,
    inputs: Mapping[str, str],
    seed: int,
    content: Mapping[str, Any] | None = None,
) -> dict[str, JsonValue]:
    """Return all that decides the result of `use`, given the keys of its parent and inputs.

    Settings that only name an input are left out: what counts is the input's key. So are those that only say how
    (`plugins.Manner`). `content` stands for settings
    that are only a way to find something (a path).
    """
    module = plugins.internal(use)
    left_out = set(inputs) | plugins.manners(type(config))
    settings = config.model_dump(mode="json", exclude=left_out) if content is None else dict(content)
    return {
        "key version": KEY_VERSION,
        "use": use,
        "step version": module.VERSION,
        "settings": settings,
        "parent": parent,
        "inputs": dict(inputs),
        "seed": seed,
        **(_computed_with() if getattr(module, "COMPUTES", True) else package_versions(("transformers",))),
    }


def _computed_with() -> dict[str, str]:
    return {**package_versions(NUMERICS), "device": device_class()}
