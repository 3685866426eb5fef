"""Which family a model's configuration is of: a file of ``families``, or one derived by tracing."""

import json
from functools import lru_cache
from typing import cast

from compress import plugins
from compress.errors import InputError, nearest
from compress.models.family import Config, Family
from compress.models.task import LANGUAGE_MODELS, class_of, in_words, task_of

MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 4_096),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16_384),
}
"""Of what a configuration may have: tens of times as many as any model that is published."""


def is_known(config: Config) -> bool:
    """Whether there is a family file for this model: they describe language models, with their head."""
    return _has_file(config) and not _lacks_words(config)


def _has_file(config: Config) -> bool:
    return config.get("model_type") in plugins.available("models.families")


def _lacks_words(config: Config) -> bool:
    """Whether its class has no distribution over the vocabulary: a classifier, a body alone."""
    return class_of(config) is not None and task_of(config) not in LANGUAGE_MODELS


def check_counts(config: Config) -> None:
    """Raise `InputError` where a configuration has more layers or experts than any model: each would be listed."""
    for key, most in MOST.items():
        value = config.get(key)
        if isinstance(value, int) and value > most:
            raise InputError(
                f"the model's configuration has {key}: {value}; each is listed with its tensors, and at most {most:,} "
                f"are. Allowed: 1 to {most:,}"
            )


def family_of(config: Config) -> Family:
    """Return the family of a configuration. Raises `InputError` for one that cannot be compressed."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise InputError(
            "the model's configuration has no 'model_type'; it must be a Hugging Face config.json"
        )
    check_counts(config)
    if _lacks_words(config):
        raise InputError(
            f"this model is {in_words(config)}; only language models can be pruned, trained, quantized and exported"
        )
    if _has_file(config):
        return cast(Family, plugins.load("models.families", name))
    try:
        return _derived(json.dumps(config, sort_keys=True))
    except InputError as error:
        known = ", ".join(plugins.available("models.families"))
        close = nearest(name, plugins.available("models.families"))
        raise InputError(
            f"models of architecture '{name}' cannot be compressed{close} Known: {known}. {error}"
        ) from error


@lru_cache(maxsize=64)
def _derived(config: str) -> Family:
    """Return the family of an architecture without a file, traced; the only thing here that imports torch."""
    from compress.models.derived import derive_family

    return cast(Family, derive_family(json.loads(config)))
