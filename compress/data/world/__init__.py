"""The demo world: an invented place whose people, towns and rules a small model learns in two minutes.

`facts.py` holds what is true, `wordings.py` how it may be said, `sentences.py` says it, `documents.py` makes
streams of texts and `items.py` multiple-choice questions. Everything follows from seeds: no data is shipped.
"""

from compress.data.world.documents import SPLITS, Split, documents
from compress.data.world.items import DEMO_TASKS, NUM_ITEMS, TEXT_TASK, Item, items, texts

__all__ = [
    "DEMO_TASKS",
    "NUM_ITEMS",
    "SPLITS",
    "TEXT_TASK",
    "VERSION",
    "Item",
    "Split",
    "documents",
    "items",
    "texts",
]

VERSION = 1
"""Raised when any text or item changes."""
