"""Which tokens stay: those that must, and as many of the most used as there is room for.

Dropping a token costs one more token each time the corpus uses it: it is cut into the two it was built from, which
are used that much more from then on. So the cheapest token that nothing is built from goes first, until the
vocabulary is small enough. Which tokens something is built from changes as others go; a queue keeps the order.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compress.errors import StepFailed
from compress.models.tokenizer_json import Parts


@dataclass(frozen=True)
class Vocabulary:
    """What a choice depends on beside the counts."""

    tokens: frozenset[int]
    """Ids that have a token which something may use. The others, padding and unused special tokens, go first."""
    parts: Parts
    """What each token is built from."""
    required: frozenset[int]
    """Ids that stay: special tokens in use, and what any text can fall back on."""


def choose(
    counts: Sequence[int], vocabulary: Vocabulary, size: int, min_count: int | None = None
) -> list[int]:
    """Return exactly `size` ids to keep, ascending, with everything they are built from.

    counts: uses of every id. Of equally used tokens the one with the highest id, which was learned last, goes
    first. Raises `StepFailed` naming the smallest possible size where `size` is below it.
    """
    required = set(vocabulary.required)
    if min_count is not None:
        required |= {index for index, count in enumerate(counts) if count >= min_count}
    uses = list(counts)
    builds = Counter(part for pair in vocabulary.parts.values() for part in pair)
    kept = set(range(len(counts)))
    queue = [_cost(index, uses, vocabulary) for index in kept if index not in required and not builds[index]]
    heapq.heapify(queue)
    while len(kept) > size and queue:
        *_, negative = heapq.heappop(queue)
        kept.remove(-negative)
        for part in vocabulary.parts.get(-negative, ()):
            uses[part] += uses[-negative]
            builds[part] -= 1
            if not builds[part] and part not in required:
                heapq.heappush(queue, _cost(part, uses, vocabulary))
    if len(kept) > size:
        raise StepFailed(_too_small(len(kept), size, min_count))
    return sorted(kept)


def _cost(index: int, uses: Sequence[int], vocabulary: Vocabulary) -> tuple[bool, int, int]:
    return index in vocabulary.tokens, uses[index], -index


def _too_small(smallest: int, size: int, min_count: int | None) -> str:
    often = f", those used {min_count} times or more" if min_count is not None else ""
    return (
        f"target of {size} tokens: {smallest} must stay (special tokens, characters or bytes, `keep`{often}, and "
        f"what these are built from); give at least {smallest}"
    )
