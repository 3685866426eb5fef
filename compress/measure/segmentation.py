"""A text of the original's ids in those of another model: where both have read the same, and the rest anew.

With the original's tokenizer all is alike, with a foreign one nothing. Between is a model whose vocabulary was pruned.
Each row of ids is read back as text, between its marks, and cut again by both tokenizers. Where the model's cut is the
original's, token by token, both read the same row, each under its own ids. Where it differs anywhere, the original
reads its row and the model its own cut, which is longer, and they are compared at every position at which both have
read the same text: up to the first token cut otherwise in the same tokens, from then on in each one's own.

The text is cut by both because reading ids back loses what lay across a row's borders (half a word, a part of a
character): such losses are the same for both, and no disagreement.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.backends.positions import padded
from compress.measure.spelling import REPLACEMENT, Spelling, aligned
from compress.meters.aligned import Recut
from compress.meters.divergence import Batch


@dataclass(frozen=True)
class Reading:
    """Batches of a text in a model's own ids."""

    whole: list[Batch]
    """Sequences that are the original's, token by token."""
    recut: list[Recut]
    """The other sequences in both cuts, where there is anything in them to compare."""
    apart: list[Batch]
    """Sequences of a foreign tokenizer."""
    num_predicted: int = 0
    """Tokens of the original's that have a predecessor: the positions there are to compare."""
    num_same_tokens: int = 0
    """Of these, tokens before the first of their sequence that is cut otherwise."""

    @property
    def num_whole(self) -> int:
        return sum(len(ids_BT) for ids_BT, _ in self.whole)

    @property
    def num_compared(self) -> int:
        """Positions at which both have read the same text."""
        return _num_predicted(self.whole) + sum(len(batch.places) for batch in self.recut)

    @property
    def num_sequences(self) -> int:
        return self.num_whole + sum(len(ids_BT) for ids_BT, _ in self._others)

    @property
    def _others(self) -> list[Batch]:
        return [*(batch.own for batch in self.recut), *self.apart]

    def num_bytes(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the UTF-8 length of all text that has a predecessor; marks between texts have no bytes."""
        rows = [
            ids_T[mask_T.bool()][1:]
            for ids_BT, mask_BT in (*self.whole, *self._others)
            for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)
        ]
        return sum(len(text.encode()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True))


@dataclass(frozen=True)
class Row:
    """One sequence in the model's own ids."""

    ids: list[int]
    num_alike: int
    """So many of the first ids are the original's, token by token."""
    places: list[tuple[int, int]]
    """Positions, the model's and the original's, at which both have read the same text."""

    @property
    def agrees(self) -> bool:
        return self.num_alike == len(self.ids)


def as_it_is(rows_ST: Tensor, batch_size: int) -> Reading:
    """Return the text for a model with the original's tokenizer."""
    num_predicted = rows_ST[:, 1:].numel()
    return Reading(_batches(rows_ST.tolist(), batch_size), [], [], num_predicted, num_predicted)


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
    both_ways: bool = False,
) -> Reading:
    """Return the text for a model whose vocabulary was pruned; rows cut anew end at `num_positions`.

    `original_ids`: the original's id of each of the model's. `both_ways`: the models see the token of a position and
    what follows, as encoders do, so only positions of the same token compare.
    """
    theirs = rows_ST.tolist()
    pairs = list(zip(recut(theirs, tokenizer, own_tokenizer, original_ids), theirs, strict=True))
    whole = _batches([row.ids for row, _ in pairs if row.agrees], batch_size)
    # By length: least padding, and positions of a batch drift apart alike.
    others = sorted((pair for pair in pairs if not pair[0].agrees), key=lambda pair: len(pair[0].ids))
    same_token = original_ids if both_ways else None
    batches = [
        _recut_batch(others[start : start + batch_size], num_positions, same_token)
        for start in range(0, len(others), batch_size)
    ]
    num_same = _num_predicted(whole) + sum(max(0, row.num_alike - 1) for row, _ in others)
    return Reading(whole, batches, [], rows_ST[:, 1:].numel(), num_same)


def _recut_batch(
    pairs: Sequence[tuple[Row, list[int]]], num_positions: int, same_token: Sequence[int] | None
) -> Recut:
    """Return rows in both cuts; `same_token`: the original's ids, where only positions of the same token compare."""
    own = [row.ids[:num_positions] for row, _ in pairs]
    # The last position of a row predicts nothing that either has.
    places = [
        (index, i, j)
        for index, (row, theirs) in enumerate(pairs)
        for i, j in row.places
        if i < len(own[index]) - 1 and j < len(theirs) - 1
        if same_token is None or same_token[row.ids[i]] == theirs[j]
    ]
    places_P3 = torch.tensor(places, dtype=torch.int64).view(-1, 3)
    return Recut(padded(own, left=False), padded([theirs for _, theirs in pairs], left=False), places_P3)


def _num_predicted(batches: Iterable[Batch]) -> int:
    """Return how many tokens have a predecessor."""
    return sum(int(mask_BT[:, 1:].sum()) for _, mask_BT in batches)


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
    # A mark that was dropped is text by now.
    marks = {mark for mark in tokenizer.all_special_ids if mark in own}
    runs = [run for row in rows for is_mark, run in _runs(row, marks.__contains__) if not is_mark]
    texts = [_read(tokenizer, run) for run in runs]
    theirs, ours = iter(_cut(tokenizer, texts)), iter(_cut(own_tokenizer, texts))
    spellings = Spelling(tokenizer), Spelling(own_tokenizer)
    return [_row(_runs(row, marks.__contains__), own, theirs, ours, spellings) for row in rows]


def _row(
    runs: Iterable[tuple[bool, list[int]]],
    own: Mapping[int, int],
    theirs: Iterator[list[int]],
    ours: Iterator[list[int]],
    spellings: tuple[Spelling, Spelling],
) -> Row:
    """Return a row given in runs. `theirs` and `ours` yield the original's and the model's cut of each run of text."""
    row = Row([], 0, [])
    num_read, same_text = 0, True
    for is_mark, run in runs:
        mapped = [own.get(index, -1) for index in run]
        before = mapped if is_mark else [own.get(index, -1) for index in next(theirs)]
        after = mapped if is_mark else next(ours)
        if before == after and -1 not in mapped:
            piece, num_same = mapped, len(mapped)
            pairs, complete = [(index, index) for index in range(len(run))], True
        else:
            piece = after
            num_same = _num_equal(zip(mapped, before, after, strict=False))
            pairs, complete = aligned(spellings[0](run), spellings[1](piece))
        alike = row.agrees and len(row.ids) == num_read
        places = [(len(row.ids) + i, num_read + j) for i, j in pairs] if same_text else []
        row = Row(row.ids + piece, row.num_alike + (num_same if alike else 0), row.places + places)
        num_read += len(run)
        same_text = same_text and complete
    return row


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
