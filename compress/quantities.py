"""Counts as people write them, ``2B`` tokens, ``1.6M``, ``500k``; and bytes as they are told.

Memory, of a machine or a card, is told in powers of 1024 (GiB), as drivers and systems count it. What lies on disk is
told in powers of 1000 (GB), as files are listed and disks are sold.
"""

import math
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


def format_memory(num_bytes: float) -> str:
    """Return an amount of memory to three significant digits: ``79.6 GiB``, ``512 MiB``."""
    return _scaled(num_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_file_size(num_bytes: float) -> str:
    """Return the size of files, or of room on a disk, to three significant digits: ``6.02 MB``."""
    return _scaled(num_bytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(num_bytes: float, step: int, units: tuple[str, ...]) -> str:
    power = 0
    while power < len(units) - 1 and abs(num_bytes) >= 999.5:
        num_bytes, power = num_bytes / step, power + 1
    if power == 0:
        return f"{round(num_bytes)} {units[0]}"
    shown = float(f"{num_bytes:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(shown))))
    return f"{num_bytes:.{decimals}f} {units[power]}"


Count = Annotated[
    int,
    BeforeValidator(parse_count),
    WithJsonSchema({"anyOf": [
        {"type": "number", "minimum": 1},
        {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT]?$"},
    ]}),
]  # fmt: skip
"""A number of tokens, parameters or samples: ``500k`` and ``2B`` are understood."""
