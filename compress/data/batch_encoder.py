"""A batch of documents → token ids as a few arrays: what one process does, this one or another.

Nothing here needs transformers where the tokenizer is one of the `tokenizers` library, and all of it can be pickled: a
process that only encodes is small and soon there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.data.chat import ChatTemplate, Rendered
from compress.data.conversation import Conversation, Document
from compress.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]

Numbered = tuple[int, Document]
"""A document, and how many of its source were read when it was, itself included."""


@dataclass(frozen=True)
class Encoded:
    """A document as token ids."""

    ids: Array
    """int64 ``[n]``."""
    learned: Array
    """Whether each is to be learned, bool ``[n]``."""
    num_bytes: int
    """The text's length in UTF-8."""
    number: int = 0
    """How many documents of its source were read when it was, itself included: who goes on after it skips so many."""


@dataclass(frozen=True)
class EncodedBatch:
    """Documents one after another in arrays, which go from process to process as they are."""

    ids: Array
    """int32, of all documents."""
    learned: Array
    """bool, of all documents."""
    lengths: list[int]
    """Tokens of each document."""
    num_bytes: list[int]
    numbers: list[int]
    after_chat: list[bool]
    """Whether a document is a conversation, or one before it in the batch was."""
    error: Exception | None = None
    """What is wrong with the document after these; it and what follows it are not here."""

    def documents(self) -> Iterator[tuple[Encoded, bool]]:
        """Yield each document, with what `after_chat` says of it. Raises `error` after the last."""
        ids, begin = self.ids.astype(np.int64), 0
        about = zip(self.lengths, self.num_bytes, self.numbers, self.after_chat, strict=True)
        for length, num_bytes, number, after_chat in about:
            end = begin + length
            yield Encoded(ids[begin:end], self.learned[begin:end], num_bytes, number), after_chat
            begin = end
        if self.error is not None:
            raise self.error


class BatchEncoder:
    """Encodes batches for one model with `before` and `after` around each text."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        before: list[int],
        after: list[int],
        embedding_rows: int | None,
    ) -> None:
        """embedding_rows: how many ids the model has an embedding for; ``None`` where no model is known."""
        self._before, self._after, self._rows = before, after, embedding_rows
        self._num_ids = len(tokenizer)
        self._splits_special = bool(tokenizer.split_special_tokens)
        self._backend: Tokenizer | None = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._tokenizer = None if tokenizer.is_fast else tokenizer
        if self._backend is not None:  # a tokenizer.json may say otherwise
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def can_move(self) -> bool:
        """Whether other processes can encode alike: a tokenizer written in Python stays where it was loaded."""
        return self._backend is not None

    def encode(self, batch: list[Numbered], chat: ChatTemplate | None) -> EncodedBatch:
        """Return the documents encoded, but for the blank ones, up to the first that cannot be.

        `chat` renders the conversations; `None` where there are none.
        """
        rendered, numbers, after_chat, error = _render(batch, chat)
        made: list[tuple[Array, Array]] = []
        with_offsets = any(document.answers is not None for document in rendered)
        tokens = self._tokens([document.text for document in rendered], with_offsets)
        for document, (ids, offsets) in zip(rendered, tokens, strict=True):
            row, learned = self._marked(document, ids, offsets)
            if self._rows is not None and row.max(initial=0) >= self._rows:
                error = self._too_many_ids(int(row.max()))
                break
            made.append((row, learned))
        return EncodedBatch(
            ids=np.concatenate([np.empty(0, np.int32), *(row for row, _ in made)]),
            learned=np.concatenate([np.empty(0, bool), *(learned for _, learned in made)]),
            lengths=[len(row) for row, _ in made],
            num_bytes=[len(document.text.encode()) for document in rendered[: len(made)]],
            numbers=numbers[: len(made)],
            after_chat=after_chat[: len(made)],
            error=error,
        )

    def _tokens(self, texts: list[str], with_offsets: bool) -> Iterator[tuple[list[int], Any]]:
        """Yield each text's ids, with the characters of each where they are asked for."""
        if not texts:
            return
        if self._backend is None:
            assert self._tokenizer is not None and not with_offsets  # `ChatTemplate` refuses such a tokenizer
            whole = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
            yield from ((ids, None) for ids in whole["input_ids"])
            return
        if self._backend.encode_special_tokens != self._splits_special:
            self._backend.encode_special_tokens = self._splits_special
        # What follows no characters is twice as fast.
        encode = self._backend.encode_batch if with_offsets else self._backend.encode_batch_fast
        for encoding in encode(texts, add_special_tokens=False):
            yield encoding.ids, encoding.offsets if with_offsets else None

    def _marked(self, document: Rendered, ids: list[int], offsets: Any) -> tuple[Array, Array]:
        if document.answers is None:
            row = np.array([*self._before, *ids, *self._after], dtype=np.int32)
            return row, np.ones(len(row), dtype=bool)
        return np.array(ids, dtype=np.int32), _touches(document.answers, offsets)

    def _too_many_ids(self, met: int) -> InputError:
        return InputError(
            f"the tokenizer does not fit the model: it has {self._num_ids} ids (met: {met}), "
            f"the model's vocabulary {self._rows}"
        )


def _render(
    batch: list[Numbered], chat: ChatTemplate | None
) -> tuple[list[Rendered], list[int], list[bool], Exception | None]:
    """Return what is not blank as the tokenizer reads it, up to the first document that the template refuses."""
    rendered: list[Rendered] = []
    numbers: list[int] = []
    after_chat: list[bool] = []
    has_chat = False
    for number, document in batch:
        if isinstance(document, Conversation):
            assert chat is not None
            has_chat = True
            try:
                made = chat.render(document)
            except InputError as error:
                return rendered, numbers, after_chat, error
        else:
            made = Rendered(document)
        if made.text.strip():
            rendered.append(made)
            numbers.append(number)
            after_chat.append(has_chat)
    return rendered, numbers, after_chat, None


def _touches(spans: tuple[tuple[int, int], ...], offsets: list[tuple[int, int]]) -> Array:
    """Return which tokens have a character inside a span: one that also covers what stands before it does."""
    edges = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    touches = np.zeros(len(edges), dtype=bool)
    for start, stop in spans:
        touches |= (edges[:, 0] < stop) & (edges[:, 1] > start)
    return touches
