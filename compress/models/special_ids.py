"""Token ids outside ``tokenizer.json``: where the settings of a model and its tokenizer name them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
"""What ``config.json``, ``generation_config.json`` or ``tokenizer_config.json`` holds."""

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens that are never generated: those that are gone need no mention."""

NAMING = ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
"""Settings of a tokenizer that hold several tokens."""


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
    for name in ("generation_config.json", "config.json"):
        if (path := folder / name).exists():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
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
    return set(_named(tokenizer_settings))


def renumbered_tokenizer(tokenizer_settings: Settings, new_ids: Mapping[int, int]) -> Settings:
    """Return ``tokenizer_config.json`` with the ids of its added tokens renumbered, those without a row as they are."""
    added = tokenizer_settings.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return tokenizer_settings
    return {
        **tokenizer_settings,
        "added_tokens_decoder": {
            str(new_ids.get(int(index), index)): token for index, token in added.items()
        },
    }


def _named(settings: Settings) -> Iterator[str]:
    for key, value in settings.items():
        if key.endswith("_token") or key in NAMING:
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
