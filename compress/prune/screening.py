"""When, and how, layers are screened before they are judged by whole predictions: see `compress.prune.removal`."""

SMALL_VOCABULARY = 8192
"""Logits of so many ids cost no more than a few layers: nothing is screened."""
NUM_IDS = 4096
"""The likeliest ids, which candidates are screened by: 95 % of the probability of Gemma 3's 262,144 on English text."""
ROWS_SHARE = 4
"""Candidates are screened on a quarter of the rows."""
FINALISTS = 3
"""So many are judged on all rows."""
JUDGED_TOKENS = 1024
"""Positions, spread over all rows, whose whole predictions are compared, or up to twice as many."""


def is_screened(vocabulary: int) -> bool:
    """Return whether a vocabulary is so large that candidates are screened first."""
    return vocabulary > SMALL_VOCABULARY


def judged_every(vocabulary: int, num_tokens: int) -> int:
    """Return of how many positions in a row one is judged by its whole prediction."""
    return max(1, num_tokens // JUDGED_TOKENS) if is_screened(vocabulary) else 1


def rounds(num_layers: int) -> range:
    """Return how many layers are left in each round, one of which goes."""
    return range(2, num_layers + 1)


def passes(num_layers: int, screened: bool) -> float:
    """Return as how many forward passes over all of the text removing layers one by one takes.

    A candidate runs what follows it, of n layers n/2 on average; what follows the one that went is run once more.
    """
    share = 1 / ROWS_SHARE if screened else 1.0
    layers = sum(
        n * (n - 1) / 2 * share + (FINALISTS * n / 2 if screened else 0.0) + n / 2 for n in rounds(num_layers)
    )
    return 2 + layers / num_layers


def whole_judgments(num_layers: int, screened: bool) -> int:
    """Return how often predictions over the whole vocabulary are compared."""
    return sum(min(n, FINALISTS) if screened else n for n in rounds(num_layers))
