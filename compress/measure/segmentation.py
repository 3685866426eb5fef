"""A text of the original's ids in those of another model: which sequences both read alike, and the rest anew.

With the original's tokenizer all are alike, with a foreign one none. Between is a model whose vocabulary was pruned.
Each row of ids is read back as text, between its marks, and cut again by both tokenizers. Where both cut it alike,
and the model has every token of the row, it can be compared with the original token by token: it reads the very
row under its own ids. Elsewhere it reads its own cut, longer than the original's, and only figures a byte compare.

The text is cut by both because reading ids back loses what lay across a row's borders (half a word, a part of a
character): such losses are the same for both, and no disagreement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.meters.divergence import Batch
from compress.meters.lm_eval_model import padded

REPLACEMENT = "\ufffd"
"""What a part of a character is read back as."""


@dataclass(frozen=True)
class Reading:
    """Batches of a text in a model's own ids."""

    shared: list[Batch]
    """Sequences that are the original's token by token."""
    apart: list[Batch]
    """Sequences its own tokenizer cuts otherwise."""

    @property
    def num_shared(self) -> int:
        return sum(len(ids_BT) for ids_BT, _ in self.shared)

    @property
    def num_sequences(self) -> int:
        return self.num_shared + sum(len(ids_BT) for ids_BT, _ in self.apart)

    def num_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the UTF-8 length of all text that has a predecessor; marks between texts have no bytes."""
        rows = [
            ids_T[mask_T.bool()][1:]
            for ids_BT, mask_BT in (*self.shared, *self.apart)
            for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)
        ]
        return sum(len(text.encode()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True))


@dataclass(frozen=True)
class Row:
    """One sequence in the model's own ids."""

    ids: list[int]
    agrees: bool
    """Whether it is the original's row, token by token."""


def as_it_is(rows_ST: Tensor, batch_size: int) -> Reading:
    """Return the text for a model with the original's tokenizer."""
    return Reading(_batches(rows_ST.tolist(), batch_size), [])


def anew(
    rows_ST: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: PreTrainedTokenizerBase,
    num_positions: int,
    batch_size: int,
) -> Reading:
    """Return the text for a model with a foreign tokenizer, marked as that marks a text, cut off at `num_positions`."""
    texts = tokenizer.batch_decode(rows_ST, skip_special_tokens=True)
    encoded = own_tokenizer(texts, truncation=True, max_length=num_positions, return_attention_mask=False)
    return Reading([], _batches(encoded["input_ids"], batch_size))


def by_both(
    rows_ST: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: PreTrainedTokenizerBase,
    original_ids: Sequence[int],
    num_positions: int,
    batch_size: int,
) -> Reading:
    """Return the text for a model whose vocabulary was pruned; rows cut anew end at `num_positions`.

    `original_ids`: the original's id of each of the model's.
    """
    rows = recut(rows_ST.tolist(), tokenizer, own_tokenizer, original_ids)
    shared = [row.ids for row in rows if row.agrees]
    apart = [row.ids[:num_positions] for row in rows if not row.agrees]
    return Reading(_batches(shared, batch_size), _batches(apart, batch_size))


def _batches(rows: list[list[int]], batch_size: int) -> list[Batch]:
    return [padded(rows[start : start + batch_size], left=False) for start in range(0, len(rows), batch_size)]


def recut(
    rows: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: PreTrainedTokenizerBase,
    original_ids: Sequence[int],
) -> list[Row]:
    """Return each row of the original's ids in the model's; `original_ids` leads from the latter to the former."""
    own = {original: index for index, original in enumerate(original_ids)}
    marks = set(tokenizer.all_special_ids)
    runs = [run for row in rows for is_mark, run in _runs(row, marks.__contains__) if not is_mark]
    texts = [_read(tokenizer, run) for run in runs]
    theirs, ours = iter(_cut(tokenizer, texts)), iter(_cut(own_tokenizer, texts))
    result = []
    for row in rows:
        agrees, ids = all(index in own for index in row), list[int]()
        for is_mark, run in _runs(row, marks.__contains__):
            before = run if is_mark else next(theirs)
            after = [own[index] for index in run] if is_mark else next(ours)
            agrees = agrees and [original_ids[index] for index in after] == before
            ids += after
        result.append(Row([own[index] for index in row] if agrees else ids, agrees))
    return result


def _runs(row: Sequence[int], is_mark: Callable[[int], bool]) -> Iterator[tuple[bool, list[int]]]:
    """Yield the row in runs of marks between texts, and of text."""
    return ((bool(mark), list(run)) for mark, run in groupby(row, is_mark))


def _read(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: Any = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return str(text).strip(REPLACEMENT)


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    cut: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)[
        "input_ids"
    ]
    return cut
