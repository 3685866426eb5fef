"""When, and how, layers are screened before they are judged by whole predictions: see `compress.prune.removal`."""

SMALL_VOCABULARY = 8192
"""Logits of so many ids cost no more than a few layers: nothing is screened."""
LEAST_SHARE = 0.3
"""A layer is taken to add at least this share of what it added to the divergence when it was last tried: of 120 such
pairs of Gemma 3 270M the least was 0.45, and half were about 1 or more."""
NUM_IDS = 4096
"""The likeliest ids, which candidates are screened by: 95 % of the probability of Gemma 3's 262,144 on English text."""
ROWS_SHARE = 4
"""Candidates are screened on a quarter of the rows."""
FINALISTS = 2
"""So many are judged on all rows: the least by whole predictions was the first or second of those screened in each of
eleven rounds of Gemma 3 270M."""
TRIED_AGAIN = 0.45
"""Of the layers left, as many are tried again after another went: 59 of 138 of Gemma 3 270M."""
JUDGED_TOKENS = 1024
"""Positions, spread over all rows, whose whole predictions are compared, or up to twice as many."""


def is_screened(vocabulary: int) -> bool:
    """Return whether a vocabulary is so large that candidates are screened first."""
    return vocabulary > SMALL_VOCABULARY


def judged_every(vocabulary: int, num_tokens: int) -> int:
    """Return of how many positions in a row one is judged by its whole prediction."""
    return max(1, num_tokens // JUDGED_TOKENS) if is_screened(vocabulary) else 1


def rounds(num_layers: int, left: int = 1) -> range:
    """Return how many layers there are in each round, the first one first; one goes in each, until so many are left."""
    return range(num_layers, left, -1)


def num_tried(rounds: range) -> list[int]:
    """Return about how many layers are tried in each round: all in the first, then those that may be the least."""
    return [n if n == rounds.start else min(n, max(FINALISTS, round(TRIED_AGAIN * n))) for n in rounds]


def passes(rounds: range, screened: bool) -> float:
    """Return as how many forward passes over all of the text removing layers one by one takes.

    A candidate runs what follows it, of n layers n/2 on average; what follows the one that went is run once more.
    """
    share = 1 / ROWS_SHARE if screened else 1.0
    layers = sum(
        (n - 1) / 2 * tried * share + (FINALISTS * n / 2 if screened else 0.0) + n / 2
        for n, tried in zip(rounds, num_tried(rounds), strict=True)
    )
    return 2 + layers / rounds.start


def whole_judgments(rounds: range, screened: bool) -> int:
    """Return about how often predictions over the whole vocabulary are compared."""
    return sum(min(n, FINALISTS) for n in rounds) if screened else sum(num_tried(rounds))
