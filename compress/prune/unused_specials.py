"""Special tokens that nothing uses: names that a vocabulary keeps free for later, thousands of them in some.

They are marked as special just as those are that begin a text or end a turn. What tells them apart is that nothing
names them: neither the settings of model and tokenizer, nor a chat template, nor the corpus.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from compress.models.special_ids import (
    MODEL_SETTINGS,
    TOKENIZER_SETTINGS,
    read_settings,
    role_tokens,
    special_ids,
    texts,
)
from compress.models.tokenizer_json import Content, special_added

TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")


def unused_specials(folder: Path, content: Content, counts: Sequence[int]) -> set[int]:
    """Return the ids of a tokenizer's special tokens that nothing in the model's folder and no text uses.

    content: the folder's ``tokenizer.json``. counts: the corpus' uses of every id.
    """
    ids = {index for name in MODEL_SETTINGS for index in special_ids(read_settings(folder, name))}
    roles = {token for name in TOKENIZER_SETTINGS for token in role_tokens(read_settings(folder, name))}
    written = "\n".join(_written(folder))
    return {
        index
        for token, index in special_added(content).items()
        if not (index in ids or token in roles or token in written or any(counts[index : index + 1]))
    }


def _written(folder: Path) -> Iterator[str]:
    """Yield the texts that may name a token: chat templates, and what generation is to stop at."""
    for pattern in TEMPLATES:
        yield from (file.read_text(encoding="utf-8") for file in sorted(folder.glob(pattern)))
    yield from texts(read_settings(folder, TOKENIZER_SETTINGS[0]).get("chat_template"))
    for name in ("chat_template.json", MODEL_SETTINGS[1]):
        yield from texts(read_settings(folder, name))
