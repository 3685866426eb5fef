"""Documents → token ids with what is to be learned of them.

A text stands between the tokenizer's marks, ``BOS text EOS`` (either mark only where the tokenizer has it; encoders
have ``CLS`` and ``SEP``). Where both are one mark, as GPT-2's, a single one stands between texts. A conversation stands
as its chat template writes it, whose marks are its own. What is blank then, empty or nothing but space, is skipped:
marks around nothing would teach to end before anything is said, and some data sets hold many such rows.

Batches are encoded here, or by processes beside this one, where that was asked for: in the same order, and whatever
is wrong with a document is raised when it is its turn.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from compress.data.batch_encoder import BatchEncoder, Encoded, EncodedBatch, Numbered
from compress.data.chat import ChatTemplate
from compress.data.conversation import Conversation, Document
from compress.data.encoding_pool import EncodingPool
from compress.data.encoding_server import State
from compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "load_tokenizer"]

BATCH_DOCUMENTS = 2048
BATCH_CHARACTERS = 2**19
"""After which a batch takes no further document: some tenths of a second on one core."""
AHEAD = 2
"""Batches for each process that are read before they are needed: one it works on, one that waits for it."""


class Encoder:
    """Encodes documents for one model, a few batches of them in memory at a time."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        embedding_rows: int | None,
        chat_template: str | None = None,
    ) -> None:
        """embedding_rows: how many ids the model has an embedding for; ``None`` where no model is known."""
        self._tokenizer, self._template = tokenizer, chat_template
        self._chat: ChatTemplate | None = None
        self.used_chat_template = False
        """Whether there was a conversation among the documents so far."""
        self.row_start, end = start_mark(tokenizer), end_mark(tokenizer)
        """The id that a row begins with, whatever it begins within; ``None`` where the tokenizer has no such mark."""
        self._before = [] if self.row_start in (None, end) else [self.row_start]
        self._after = [] if end is None else [end]
        self._batch_encoder = BatchEncoder(tokenizer, self._before, self._after, embedding_rows)
        self._pool: EncodingPool | None = None

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def use_processes(self, num: int, warn: Callable[[str], None]) -> None:
        """Have so many processes do the work from when they are ready; `warn` is told where they cannot be started.

        They end when the encoder's ``with`` does. Asked again, or for a tokenizer that stays in this process, it does
        nothing.
        """
        if self._pool is None and num > 1 and self._batch_encoder.can_move:
            self._pool = EncodingPool(State(self._batch_encoder, self._chat is not None), num, warn)

    def encode(
        self, documents: Iterator[Document], num_skipped: int = 0, share: float = 1.0
    ) -> Iterator[Encoded]:
        """Yield each document encoded, but for the blank ones.

        num_skipped: how many of the source come before these. share: of all that this encoder is asked for, about,
        which says how much of these is read ahead. Raises `InputError` for ids the model has no embedding for.
        """
        for batch in self._in_order(self._batches(documents, num_skipped), share):
            for document, after_chat in batch.documents():
                self.used_chat_template |= after_chat
                yield document

    def _in_order(
        self, batches: "Iterator[list[Numbered] | Exception]", share: float
    ) -> Iterator[EncodedBatch]:
        """Yield each batch encoded. Raises the error among them, in its turn."""
        begun: deque[Future[EncodedBatch]] = deque()
        while True:
            while len(begun) < self._num_ahead(share) and (batch := next(batches, None)) is not None:
                begun.append(self._begin(batch))
            if not begun:
                return
            yield begun.popleft().result()

    def _num_ahead(self, share: float) -> int:
        if self._pool is None or not self._pool.is_ready:
            return 1
        return 1 + math.ceil(AHEAD * share * self._pool.num_processes)

    def _begin(self, batch: list[Numbered] | Exception) -> "Future[EncodedBatch]":
        future: Future[EncodedBatch] = Future()
        if isinstance(batch, Exception):
            future.set_exception(batch)
        elif self._pool is not None and self._pool.is_ready:
            return self._pool.submit(batch, self._chat)
        else:
            future.set_result(self._batch_encoder.encode(batch, self._chat))
        return future

    def _batches(
        self, documents: Iterator[Document], num_skipped: int
    ) -> Iterator[list[Numbered] | Exception]:
        """Yield documents with their numbers, and at the end what reading the next one raised, if it did."""
        batch: list[Numbered] = []
        num_characters, failure = 0, None
        try:
            for numbered in enumerate(documents, start=num_skipped + 1):
                num_characters += self._size(numbered[1])
                batch.append(numbered)
                if len(batch) >= BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
                    yield batch
                    batch, num_characters = [], 0
        except Exception as error:  # raised again, when the documents before it are done
            failure = error
        if batch:
            yield batch
        if failure is not None:
            yield failure

    def _size(self, document: Document) -> int:
        """Return about how many characters a document has. Raises `InputError` where no template is for it."""
        if not isinstance(document, Conversation):
            return len(document)
        if self._chat is None:
            self._chat = ChatTemplate(self._tokenizer, self._template)
        return sum(len(message.get("content", "")) for message in document.messages)


def start_mark(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id that stands before a text: a model that was trained with it depends on it."""
    return _first_id(tokenizer.bos_token_id, tokenizer.cls_token_id)


def end_mark(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id that stands after a text."""
    return _first_id(tokenizer.eos_token_id, tokenizer.sep_token_id)


def _first_id(*ids: int | None) -> int | None:
    return next((int(id) for id in ids if id is not None), None)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a folder. Raises `InputError` where there is none that plain loading reads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer can be loaded from {folder}: {error}") from error
