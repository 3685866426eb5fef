"""Messages between a user and an assistant, as sources hand them on: checked here, rendered where the tokenizer is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import InputError

ANSWERS = "assistant"
"""The role whose turns are learned. What other roles there are is for the chat template to say."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns in their order. A language model learns the assistant's, and only reads the others."""

    messages: tuple[Message, ...]
    """Each with a ``role`` and its ``content``; further keys are for the chat template."""
    where: str
    """The place it was read from, for messages about it."""


Document = str | Conversation
"""What a source yields: a text, all of which is learned, or a conversation."""


def document(value: object, where: str) -> Document:
    """Return what a field holds: a text as it stands, a list of ``{role, content}`` as a conversation.

    Keys without a value are left out, as columnar files fill in every key that any message has. Raises `InputError`,
    which begins with `where`, for anything else, and for text that is none in UTF-8.
    """
    if isinstance(value, str):
        _check_characters(value, where)
        return value
    if not isinstance(value, list):
        raise InputError(f"{where} holds neither text nor a list of messages but {type(value).__name__}")
    if not value:
        raise InputError(f"{where} holds a conversation without messages")
    messages = (_message(item, f"{where}, message {number}") for number, item in enumerate(value, start=1))
    return Conversation(tuple(messages), where)


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected {{role, content}}, found {type(item).__name__}")
    _check_characters(item, where)
    message = {key: value for key, value in item.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not (isinstance(content, str) or "tool_calls" in message):
        raise InputError(
            f"{where}: expected the texts `role` and `content`, found {', '.join(item) or 'nothing'}"
        )
    return message


def _check_characters(value: object, where: str) -> None:
    """Raise for half a character (a surrogate), which JSON can write and no tokenizer reads, at any depth."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: character {error.start + 1} is half a character, {value[error.start]!a}, without the other "
                "half: the text was cut, or escaped wrongly"
            ) from error
    elif isinstance(value, Mapping):
        _check_characters([*value.keys(), *value.values()], where)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_characters(item, where)
