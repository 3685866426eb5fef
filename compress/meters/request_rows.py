"""The rows of token ids that answer scoring requests: as few as can be, what they share read once.

A request whose input is a prefix of another's costs nothing: it is read off the other's row (all one-token options of
a question are one row). What rows begin with, such as the question before options of several tokens, can be read once
for all of them: found by tokens, whatever strings they came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from compress.backends.prefixes import PrefixedBatch, prefixed_batch
from compress.data.task_lengths import FEWEST_SHARED, MOST_READ

LARGEST_GROUP = 64
"""Rows: more save nearly nothing, and take long to be found. In a batch equal prefixes of several groups are one."""


@dataclass(frozen=True)
class Query:
    """Score the last `num_targets` of `ids`, given what stands before them."""

    ids: tuple[int, ...]
    num_targets: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.ids[:-1]

    @property
    def first_asked(self) -> int:
        """The position of the inputs that predicts the first target."""
        return len(self.inputs) - self.num_targets


@dataclass
class Row:
    """Input ids of one forward pass and the queries that are answered from it."""

    inputs: tuple[int, ...]
    queries: list[int]
    num_shared: int = 0
    """Inputs at the beginning that other rows begin with too, and that are read once for all of them."""


def shared_rows(queries: Sequence[Query]) -> list[Row]:
    """Return the rows that answer all queries, longest first; an input that begins another's shares its row.

    In lexicographic order whatever begins with an input follows it directly, so one backward look finds all
    sharing.
    """
    rows: list[Row] = []
    for index in sorted(range(len(queries)), key=lambda i: queries[i].ids[:-1], reverse=True):
        inputs = queries[index].inputs
        if rows and rows[-1].inputs[: len(inputs)] == inputs:
            rows[-1].queries.append(index)
        else:
            rows.append(Row(inputs, [index]))
    return sorted(rows, key=lambda row: (-len(row.inputs), row.inputs))


def with_prefixes(rows: Sequence[Row], queries: Sequence[Query], most: int) -> list[Row]:
    """Return the same rows and what they share: first those that do, group by group, then the others, longest first.

    A group has at most so many rows. Groups of a like form are neighbours, so that batches have little padding.
    """
    first_asked = {row.inputs: min(queries[index].first_asked for index in row.queries) for row in rows}
    # A prefix is read without logits: where these are asked for early there is none.
    able = sorted(
        (row for row in rows if first_asked[row.inputs] >= FEWEST_SHARED), key=lambda row: row.inputs
    )
    groups = groups_of(
        [row.inputs for row in able], [first_asked[row.inputs] for row in able], min(most, LARGEST_GROUP)
    )
    sharing = [
        [replace(row, num_shared=num_shared) for row in able[start:stop]]
        for start, stop, num_shared in groups
    ]
    sharing.sort(key=_form)
    shared = {row.inputs for group in sharing for row in group}
    return [row for group in sharing for row in group] + [row for row in rows if row.inputs not in shared]


def prefixed(rows: Sequence[Row]) -> PrefixedBatch | None:
    """Return a batch of rows that share as prefixes and what follows, or ``None`` where that does not pay."""
    if not rows[0].num_shared:
        return None
    batch = prefixed_batch([row.inputs for row in rows], [row.num_shared for row in rows])
    whole = len(rows) * max(len(row.inputs) for row in rows)
    return batch if batch.num_read <= MOST_READ * whole else None


def groups_of(
    inputs: Sequence[tuple[int, ...]], first_asked: Sequence[int], most: int
) -> list[tuple[int, int, int]]:
    """Return groups of sorted inputs (first, behind the last, tokens they share) that leave fewest tokens to read.

    What all inputs between two share is the least that neighbours share. The best of the first so many inputs is the
    best before the last group, and that group: inputs of a group are counted as padded to the longest.
    """
    common = [_num_common(*pair) for pair in pairwise(inputs)]
    fewest = [0]
    """To read of the first so many inputs."""
    last: list[tuple[int, int]] = [(0, 0)]
    """Where their last group begins, and what it shares."""
    for stop in range(1, len(inputs) + 1):
        num_shared, longest, whole = first_asked[stop - 1], len(inputs[stop - 1]), len(inputs[stop - 1])
        best, found = fewest[stop - 1] + whole, (stop - 1, 0)
        for start in range(stop - 2, max(-1, stop - 1 - most), -1):
            num_shared = min(num_shared, common[start], first_asked[start])
            if num_shared < FEWEST_SHARED:
                break
            longest, whole = max(longest, len(inputs[start])), whole + len(inputs[start])
            read = num_shared + (stop - start) * (longest - num_shared)
            if read <= MOST_READ * whole and fewest[start] + read < best:
                best, found = fewest[start] + read, (start, num_shared)
        fewest.append(best)
        last.append(found)
    groups = []
    stop = len(inputs)
    while stop:
        start, num_shared = last[stop]
        if num_shared:
            groups.append((start, stop, num_shared))
        stop = start
    return groups


def _num_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return how many tokens two texts begin with alike."""
    differing = (place for place, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(differing, min(len(a), len(b)))


def _form(group: Sequence[Row]) -> tuple[int, int, tuple[int, ...]]:
    """Return by what groups are sorted: many have the same longest ending, and of these the prefixes are alike."""
    first = group[0]
    longest = max(len(row.inputs) for row in group)
    return first.num_shared - longest, -first.num_shared, first.inputs
