"""A dataset of the Hugging Face hub, whole or streamed, pinned to the commit it was resolved to."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from compress.data.conversation import Document, document
from compress.digests import DigestMemo
from compress.errors import HubUnavailable, InputError, nearest
from compress.plugins import StepConfig

VERSION = 1

SHUFFLE_BUFFER = 10_000


class Config(StepConfig):
    """Which dataset, and which part of it."""

    id: str
    """``owner/name`` on the hub."""
    config: str | None = None
    """The dataset's configuration (subset), where it has several."""
    split: str = "train"
    """Which split to read; slices such as ``train[:1%]`` work when not streaming."""
    field: str = "text"
    """The column that holds a text, or a conversation: a list of ``{role, content}``, of which only the assistant's
    answers are learned."""
    streaming: bool = False
    """Read over the network as needed, instead of downloading first."""
    revision: str = "main"
    """Branch, tag or commit."""
    shuffle: bool = True
    """Draw documents in a seeded order (streaming: within a buffer of 10,000), not as they stand."""


def documents(config: Config, seed: int) -> Iterator[Document]:
    """Yield the column's texts and conversations. Raises `InputError` for what the hub or the dataset does not have."""
    return documents_after(config, seed, 0)


def documents_after(config: Config, seed: int, num: int) -> Iterator[Document]:
    """Yield all but the first `num` drawn: a downloaded dataset does not look at them, a streamed one passes over."""
    dataset = _open(config)
    columns = dataset.column_names or [config.field]
    if config.field not in columns:
        raise InputError(
            f"the dataset '{config.id}' has no column '{config.field}'{nearest(config.field, columns)} "
            f"There are: {', '.join(columns)}"
        )
    if config.shuffle:
        dataset = dataset.shuffle(seed, **({"buffer_size": SHUFFLE_BUFFER} if config.streaming else {}))
    if num:
        dataset = dataset.skip(num)
    return (
        document(
            row[config.field], f"the dataset '{config.id}', row {number} drawn: the column '{config.field}'"
        )
        for number, row in enumerate(dataset, start=num + 1)
    )


def digest(config: Config, memo: DigestMemo) -> str:
    """Return id, part, order and the commit that `revision` means now.

    Raises `InputError` for what the hub does not have, `HubUnavailable` when it cannot be asked.
    """
    read = ("as it stands", "shuffled whole", "as it stands", "shuffled within a buffer")
    order = read[config.shuffle + 2 * config.streaming]
    part = f"{config.config}:{config.split}:{config.field}:{order}"
    return f"{config.id}@{_commit(config.id, config.revision)}:{part}"


@cache
def _commit(dataset: str, revision: str) -> str:
    """Return the commit of a revision; a full commit hash needs no asking, and so no network."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(HfApi().dataset_info(dataset, revision=revision).sha)
    except (HTTPError, OSError, ValueError) as error:
        is_gated = isinstance(error, GatedRepoError)  # which is a kind of not found
        is_wrong = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | ValueError)
        raise (InputError if is_wrong and not is_gated else HubUnavailable)(
            f"the dataset '{dataset}' at '{revision}' cannot be found on the hub: {_first_line(error)}. "
            "Without a network, give a full commit hash as `revision`, or use the source `text` or `jsonl`"
        ) from error


def _open(config: Config) -> Any:
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    try:
        return load_dataset(
            config.id,
            config.config,
            split=config.split,
            streaming=config.streaming,
            revision=_commit(config.id, config.revision),
        )
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"the dataset '{config.id}' cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
