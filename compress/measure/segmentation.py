"""A text of the original's ids in those of another model: how far both read alike, and the rest anew.

With the original's tokenizer all is alike, with a foreign one nothing. Between is a model whose vocabulary was pruned.
Each row of ids is read back as text, between its marks, and cut again by both tokenizers. Up to the first token cut
otherwise, the model reads the original's very tokens under its own ids, and can be compared with it token by token:
what comes later changes no prediction before. A row that differs anywhere is also read whole in the model's own cut,
longer than the original's, for the figures a byte.

The text is cut by both because reading ids back loses what lay across a row's borders (half a word, a part of a
character): such losses are the same for both, and no disagreement.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
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

    whole: list[Batch]
    """Sequences that are the original's, token by token."""
    beginnings: list[Batch]
    """Of the other sequences, what comes before the first difference."""
    apart: list[Batch]
    """The other sequences, whole, as the model's own tokenizer cuts them."""

    @property
    def num_whole(self) -> int:
        return sum(len(ids_BT) for ids_BT, _ in self.whole)

    @property
    def num_compared(self) -> int:
        """Tokens that have a predecessor and are read alike."""
        return sum(int(mask_BT[:, 1:].sum()) for _, mask_BT in (*self.whole, *self.beginnings))

    @property
    def num_rows(self) -> int:
        """Sequences to read, those with a beginning twice."""
        return sum(len(ids_BT) for ids_BT, _ in (*self.whole, *self.beginnings, *self.apart))

    def num_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the UTF-8 length of all text that has a predecessor; marks between texts have no bytes."""
        rows = [
            ids_T[mask_T.bool()][1:]
            for ids_BT, mask_BT in (*self.whole, *self.apart)
            for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)
        ]
        return sum(len(text.encode()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True))


@dataclass(frozen=True)
class Row:
    """One sequence in the model's own ids."""

    ids: list[int]
    num_alike: int
    """So many of the first ids are the original's, token by token."""

    @property
    def agrees(self) -> bool:
        return self.num_alike == len(self.ids)


def as_it_is(rows_ST: Tensor, batch_size: int) -> Reading:
    """Return the text for a model with the original's tokenizer."""
    return Reading(_batches(rows_ST.tolist(), batch_size), [], [])


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
    return Reading([], [], _batches(encoded["input_ids"], batch_size))


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
    groups = (
        [row.ids for row in rows if row.agrees],
        # A token alone predicts nothing that both have.
        [row.ids[: row.num_alike] for row in rows if not row.agrees and row.num_alike > 1],
        [row.ids[:num_positions] for row in rows if not row.agrees],
    )
    return Reading(*(_batches(group, batch_size) for group in groups))


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
    return [_row(list(_runs(row, marks.__contains__)), own, theirs, ours) for row in rows]


def _row(
    runs: list[tuple[bool, list[int]]],
    own: Mapping[int, int],
    theirs: Iterator[list[int]],
    ours: Iterator[list[int]],
) -> Row:
    """Return a row given in runs. `theirs` and `ours` yield the original's and the model's cut of each run of text."""
    ids: list[int] = []
    num_alike, alike = 0, True
    for is_mark, run in runs:
        mapped = [own.get(index, -1) for index in run]
        before = mapped if is_mark else [own.get(index, -1) for index in next(theirs)]
        after = mapped if is_mark else next(ours)
        if before == after and -1 not in mapped:
            piece, num_same = mapped, len(mapped)
        else:
            piece = after
            num_same = _num_equal(zip(mapped, before, after, strict=False))
        num_alike += num_same if alike else 0
        alike = alike and num_same == len(run) == len(piece)
        ids += piece
    return Row(ids, num_alike)


def _num_equal(columns: Iterable[tuple[int, int, int]]) -> int:
    """Return how many columns, from the first on, hold one value three times."""
    return sum(1 for _ in takewhile(lambda column: column[0] == column[1] == column[2], columns))


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
