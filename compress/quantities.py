"""Counts as people write them: ``2B`` tokens, ``1.6M``, ``500k``."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

_LARGEST_FIRST = tuple(reversed(SUFFIXES.items()))
_COUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:e\+?\d{1,2})?)\s*([kmbt]?)", re.IGNORECASE)


def parse_count(value: object) -> int:
    """Return the whole number a text such as ``1.6M`` or a plain number means; at least 1.

    Raises `ValueError` saying what a count looks like.
    """
    match = _COUNT.fullmatch(str(value).strip()) if isinstance(value, int | float | str) else None
    number = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2].lower()] if match else Decimal(0)
    if isinstance(value, bool) or number < 1 or number != int(number):
        raise ValueError("expected a whole number above 0, written like 500000, 500k, 1.6M or 2B")
    return int(number)


def format_count(number: float) -> str:
    """Return a count to three significant digits with its suffix: ``1.6M``, ``2B``, ``640``."""
    suffix, size = next((s, n) for s, n in _LARGEST_FIRST if abs(number) >= 0.9995 * n or n == 1)
    digits = f"{number / size:.3g}" if abs(number) < 999.5 * size else f"{number / size:.0f}"
    return digits + (suffix if suffix == "k" else suffix.upper())


Count = Annotated[
    int,
    BeforeValidator(parse_count),
    WithJsonSchema({"anyOf": [
        {"type": "number", "minimum": 1},
        {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT]?$"},
    ]}),
]  # fmt: skip
"""A number of tokens, parameters or samples: ``500k`` and ``2B`` are understood."""
