"""Messages between a user and an assistant, as sources hand them on: checked here, rendered where the tokenizer is."""

from collections.abc import Iterator, Mapping
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

    Keys without a value are left out, as columnar files fill in every key that any message has. A content in parts,
    ``{type: text, text: …}``, becomes one text. Raises `InputError`, which begins with `where`, for anything else, and
    for half characters.
    """
    if isinstance(value, str):
        _check_characters(value, where)
        return value
    if not isinstance(value, list):
        raise InputError(f"{where} holds neither text nor a list of messages but {kind_of(value)}")
    if not value:
        raise InputError(f"{where} holds a conversation without messages")
    messages = (_message(item, f"{where}, message {number}") for number, item in enumerate(value, start=1))
    return Conversation(tuple(messages), where)


def kind_of(value: object) -> str:
    """Return what a value of a data file is, as such a file would call it."""
    return "null" if value is None else type(value).__name__


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected {{role, content}}, found {kind_of(item)}")
    _check_characters(item, where)
    message = {key: value for key, value in item.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = "".join(_text(message["content"], where))
    if not (message.keys() >= {"role", "content"} or message.keys() >= {"role", "tool_calls"}):
        raise InputError(
            f"{where}: expected the texts `role` and `content`, found {', '.join(message) or 'nothing'}"
        )
    for key in ("role", "content"):
        if key in message and not isinstance(message[key], str):
            raise InputError(f"{where}: `{key}` must be text, found {kind_of(message[key])}")
    return message


def _text(parts: list[Any], where: str) -> Iterator[str]:
    """Yield the texts of a content in parts, which templates that read parts write with nothing between them."""
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict):
            found = kind_of(part)
        elif part.get("type") != "text":
            found = f"the type {part.get('type')!r}"
        elif not isinstance(part.get("text"), str):
            found = f"{kind_of(part.get('text'))} as its text"
        else:
            yield part["text"]
            continue
        raise InputError(
            f"{where}: only text can be read: part {number} of `content` must be {{type: text, text: …}}, found {found}"
        )


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
