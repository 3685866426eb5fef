"""JSON-lines files: one object a line, a text or a conversation in one of its fields."""

import json
from collections.abc import Iterator

from pydantic import Field

from compress.data.conversation import Document, document, kind_of
from compress.data.files import digest_files, require_file
from compress.digests import DigestMemo
from compress.errors import InputError, nearest
from compress.plugins import StepConfig

VERSION = 1

_FORM = "Each line is one whole object; of a file that is one list, write every entry on a line of its own"


class Config(StepConfig):
    """Which files to read, and which field of their objects."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, in this order, UTF-8, one JSON object a line. Blank lines are skipped."""
    field: str = "text"
    """The key in each object that holds a text, or a conversation: a list of ``{role, content}``, of which only the
    assistant's answers are learned."""


def documents(config: Config, seed: int) -> Iterator[Document]:
    """Yield the documents in their order (the seed changes nothing). Raises `InputError` with file and line."""
    return documents_after(config, seed, 0)


def documents_after(config: Config, seed: int, num: int) -> Iterator[Document]:
    """Yield all but the first `num`, whose lines are passed over as they stand."""
    for path in config.paths:
        with require_file(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and (num := num - 1) < 0:
                    yield _document(line, config.field, f"{path}:{number}")


def digest(config: Config, memo: DigestMemo) -> str:
    """Return the SHA-256 over the files' contents and the field's name."""
    return f"{digest_files(config.paths, memo)}:{config.field}"


def _document(line: bytes, field: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}. {_FORM}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object but {kind_of(record)}. {_FORM}")
    if field not in record:
        raise InputError(
            f"{where}: no field '{field}'{nearest(field, record)} There are: {', '.join(record)}"
        )
    return document(record[field], f"{where}: the field '{field}'")
