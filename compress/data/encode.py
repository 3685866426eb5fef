"""Documents → token ids with what is to be learned of them.

A text stands between the tokenizer's marks, ``BOS text EOS`` (either mark only where the tokenizer has it; encoders
have ``CLS`` and ``SEP``). Where both are one mark, as GPT-2's, a single one stands between texts. A conversation stands
as its chat template writes it, whose marks are its own. What is blank then, empty or nothing but space, is skipped:
marks around nothing would teach to end before anything is said, and some data sets hold many such rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.data.chat import ChatTemplate, Rendered
from compress.data.conversation import Conversation, Document
from compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 256

Array = np.ndarray[Any, Any]


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


class Encoder:
    """Encodes documents for one model, a batch of them in memory at a time."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        embedding_rows: int | None,
        chat_template: str | None = None,
    ) -> None:
        """embedding_rows: how many ids the model has an embedding for; ``None`` where no model is known."""
        self._tokenizer, self._rows, self._template = tokenizer, embedding_rows, chat_template
        self._chat: ChatTemplate | None = None
        self.used_chat_template = False
        """Whether there was a conversation among the documents so far."""
        self.row_start, end = start_mark(tokenizer), end_mark(tokenizer)
        """The id that a row begins with, whatever it begins within; ``None`` where the tokenizer has no such mark."""
        self._before = [] if self.row_start in (None, end) else [self.row_start]
        self._after = [] if end is None else [end]

    def encode(self, documents: Iterator[Document], num_skipped: int = 0) -> Iterator[Encoded]:
        """Yield each document encoded, but for the blank ones.

        num_skipped: how many of the source come before these. Raises `InputError` for ids the model has no embedding
        for.
        """
        numbered = enumerate(documents, start=num_skipped + 1)
        while batch := list(islice(numbered, BATCH_DOCUMENTS)):
            made = [(number, self._render(document)) for number, document in batch]
            numbers = [number for number, document in made if document.text.strip()]
            rendered = [document for _, document in made if document.text.strip()]
            if not rendered:
                continue
            tokens = self._tokenizer(
                [document.text for document in rendered],
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=any(document.answers is not None for document in rendered),
            )
            offsets = tokens.get("offset_mapping") or [None] * len(rendered)
            for number, document, ids, spans in zip(
                numbers, rendered, tokens["input_ids"], offsets, strict=True
            ):
                yield self._encoded(document, ids, spans, number)

    def _render(self, document: Document) -> Rendered:
        if not isinstance(document, Conversation):
            return Rendered(document)
        if self._chat is None:
            self._chat = ChatTemplate(self._tokenizer, self._template)
            self.used_chat_template = True
        return self._chat.render(document)

    def _encoded(
        self, document: Rendered, ids: list[int], offsets: list[tuple[int, int]] | None, number: int
    ) -> Encoded:
        if document.answers is None:
            ids = [*self._before, *ids, *self._after]
            learned = np.ones(len(ids), dtype=bool)
        else:
            assert offsets is not None
            learned = _touches(document.answers, offsets)
        row = np.array(ids, dtype=np.int64)
        if self._rows is not None and row.max(initial=0) >= self._rows:
            raise InputError(
                f"the tokenizer does not fit the model: it has {len(self._tokenizer)} ids (met: {row.max()}), "
                f"the model's vocabulary {self._rows}"
            )
        return Encoded(row, learned, len(document.text.encode()), number)


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


def _touches(spans: tuple[tuple[int, int], ...], offsets: list[tuple[int, int]]) -> Array:
    """Return which tokens have a character inside a span: one that also covers what stands before it does."""
    edges = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    touches = np.zeros(len(edges), dtype=bool)
    for start, stop in spans:
        touches |= (edges[:, 0] < stop) & (edges[:, 1] > start)
    return touches
