"""What counts as an item answered right, of the figures lm-eval gives it."""

from collections.abc import Collection, Iterable

METRICS = ("acc", "acc_norm")
"""What counts as accuracy, best first."""


def accuracy_metric(items: Iterable[Collection[str]]) -> str | None:
    """Return the best of `METRICS` that any item has, from the names of each item's; `None` for a task without."""
    named = {metric for names in items for metric in names}
    return next((metric for metric in METRICS if metric in named), None)
