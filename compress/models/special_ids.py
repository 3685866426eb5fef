"""Token ids outside ``tokenizer.json``: where the settings of a model and its tokenizer name them."""

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
"""What ``config.json``, ``generation_config.json`` or ``tokenizer_config.json`` holds."""

MODEL_SETTINGS = ("config.json", "generation_config.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens that are never generated: those that are gone need no mention."""

ROLES = ("additional_special_tokens", "extra_special_tokens")
"""Settings of a tokenizer that give several tokens a role."""

NAMING = (*ROLES, "added_tokens_decoder")
"""Settings of a tokenizer that hold several tokens."""


def read_settings(folder: Path, name: str) -> Settings:
    """Return what a file of settings holds, nothing where there is none."""
    path = folder / name
    settings: Settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings


def special_ids(settings: Settings) -> set[int]:
    """Return the ids a model's settings name as ``…_token_id``, alone or in lists, nested settings included."""
    found: set[int] = set()
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= special_ids(value)
        elif key.endswith(("_token_id", "_token_ids")):
            found |= {index for index in _listed(value) if _is_id(index)}
    return found


def end_ids(folder: Path) -> set[int]:
    """Return every id that ends what a model writes, as ``generation_config.json`` and ``config.json`` list them."""
    found: set[int] = set()
    for name in MODEL_SETTINGS:
        value = read_settings(folder, name).get("eos_token_id")
        found |= {index for index in _listed(value) if _is_id(index)}
    return found


def renumbered(settings: Settings, new_ids: Mapping[int, int]) -> Settings:
    """Return a model's settings with every id they name renumbered; one that names no row is left as it is."""

    def new(value: Any) -> Any:
        if isinstance(value, list):
            return [new(item) for item in value]
        return new_ids.get(value, value) if _is_id(value) else value

    result: Settings = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            result[key] = renumbered(value, new_ids)
        elif key.endswith(("_token_id", "_token_ids")):
            result[key] = new(value)
        elif key in SUPPRESSED and isinstance(value, list):
            result[key] = [new_ids[index] for index in value if index in new_ids]
        elif key == "bad_words_ids" and isinstance(value, list):
            result[key] = [new(word) for word in value if all(index in new_ids for index in word)]
        else:
            result[key] = value
    return result


def named_tokens(tokenizer_settings: Settings) -> set[str]:
    """Return the tokens ``tokenizer_config.json`` names: ``bos_token``, additional special tokens, added ones."""
    return set(_named(tokenizer_settings, NAMING))


def role_tokens(tokenizer_settings: Settings) -> set[str]:
    """Return the tokens ``tokenizer_config.json`` gives a role: `named_tokens` without those it only lists as added."""
    return set(_named(tokenizer_settings, ROLES))


def texts(settings: Any) -> Iterator[str]:
    """Yield every text in settings, however deep: a token may be named in a stop string or a chat template."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, (dict, list)):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from texts(value)


def renumbered_tokenizer(
    tokenizer_settings: Settings, new_ids: Mapping[int, int], dropped: Container[int] = ()
) -> Settings:
    """Return ``tokenizer_config.json`` with the ids of its added tokens renumbered, those without a row as they are.

    The added tokens of the `dropped` ids are left out.
    """
    added = tokenizer_settings.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return tokenizer_settings
    return {
        **tokenizer_settings,
        "added_tokens_decoder": {
            str(new_ids.get(int(index), index)): token
            for index, token in added.items()
            if int(index) not in dropped
        },
    }


def _named(settings: Settings, naming: tuple[str, ...]) -> Iterator[str]:
    for key, value in settings.items():
        if key.endswith("_token") or key in naming:
            several = isinstance(value, dict) and "content" not in value
            yield from filter(None, map(_text, value.values() if several else _listed(value)))


def _text(token: Any) -> str | None:
    """A token is written as its text, or as a mapping with its ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
