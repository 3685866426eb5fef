"""Parquet files: one row a document, a text or a conversation in one of the columns."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from compress.data.conversation import Document, document
from compress.data.files import digest_files, require_file
from compress.digests import DigestMemo
from compress.errors import InputError, nearest
from compress.plugins import StepConfig

VERSION = 1

BATCH_ROWS = 1024
"""Rows in memory at once, beside one compressed row group of the column."""


class Config(StepConfig):
    """Which files to read, and which of their columns."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, in this order."""
    field: str = "text"
    """The column that holds a text, or a conversation: a list of ``{role, content}``, of which only the assistant's
    answers are learned."""


def documents(config: Config, seed: int) -> Iterator[Document]:
    """Yield the documents in their order (the seed changes nothing). Raises `InputError` with file and row."""
    return documents_after(config, seed, 0)


def documents_after(config: Config, seed: int, num: int) -> Iterator[Document]:
    """Yield all but the first `num`: row groups without any other are not read."""
    for path in config.paths:
        file = require_file(path)
        groups, passed = _groups_after(file, num)
        number, num = passed, num - passed
        try:
            for number, value in enumerate(_column(file, config.field, groups), start=passed + 1):
                if (num := num - 1) < 0:
                    yield document(value, _place(path, number, config.field))
        except UnicodeDecodeError as error:
            place = _place(path, number + 1, config.field)
            raise InputError(f"{place} is not UTF-8 text: {error}") from error


def digest(config: Config, memo: DigestMemo) -> str:
    """Return the SHA-256 over the files' contents and the column's name."""
    return f"{digest_files(config.paths, memo)}:{config.field}"


def _place(path: str, row: int, field: str) -> str:
    return f"{path}, row {row}: the column '{field}'"


def _groups_after(path: Path, num: int) -> tuple[list[int], int]:
    """Return the row groups with a row that is not among the first `num`, and how many rows come before them."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    first = passed = 0
    while first < len(sizes) and passed + sizes[first] <= num:
        passed, first = passed + sizes[first], first + 1
    return [*range(first, len(sizes))], passed


def _column(path: Path, field: str, groups: list[int]) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise InputError(
                    f"{path}: no column '{field}'{nearest(field, columns)} There are: {', '.join(columns)}"
                )
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=[field]):
                yield from _values(batch.column(0))
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _values(column: Any) -> Iterable[Any]:
    """Return the values; where one is not UTF-8, one at a time, so that it is known which raises `UnicodeDecodeError`.

    Parquet's writers are free to put any bytes into a column of text.
    """
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:
        return (value.as_py() for value in column)
