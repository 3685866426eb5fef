"""The chat template that a tokenizer's folder holds, read as transformers reads it, before any work is done with it."""

import json
from pathlib import Path

from compress.data.chat import check_template
from compress.errors import InputError

FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"


def check_stored_template(folder: Path) -> None:
    """Raise `InputError` for a tokenizer in whose folder there is no chat template to ask by, or none that is valid.

    Of several by name, the one called ``default`` is meant. A ``chat_template.json`` is a processor's, which reads more
    than text: no tokenizer reads it.
    """
    where = FILE if (folder / FILE).is_file() else SETTINGS
    found = _stored(folder / where)
    if isinstance(found, list):
        named = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
        if "default" not in named:
            raise InputError(
                f"the tokenizer in {folder} has chat templates called {', '.join(map(repr, named))}, and none called "
                "'default', which would be taken"
            )
        found = named["default"]
    if not isinstance(found, str) or not found:
        raise InputError(
            f"the tokenizer in {folder} has no chat template. A model that was only pretrained has none: leave it out"
        )
    check_template(found, str(folder / where))


def _stored(path: Path) -> object:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return text if path.name == FILE else json.loads(text).get("chat_template")
