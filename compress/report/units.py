"""Numbers as people read them: three significant digits, an SI prefix, always a unit.

Digits and unit are joined by a no-break space. The minus is U+2212, as wide as the plus it stands beside.
"""

import math
from collections.abc import Callable

from compress.quantities import format_file_size, format_memory

SPACE = "\u00a0"
MINUS = "\u2212"
TIMES = "\u00d7"

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

NOT_MEASURED = "not measured"


def significant(value: float) -> str:
    """Return a number with three significant digits and no exponent: ``0.0123``, ``4.56``, ``1234``."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{decimals}f}".replace("-", MINUS)


def scaled(value: float, prefixes: tuple[str, ...]) -> str:
    """Return a number scaled by thousands: ``scaled(1_512_000, ("", "k", "M"))`` is ``1.51 M``."""
    if not math.isfinite(value):
        return "not finite"
    power = 0
    while power < len(prefixes) - 1 and abs(value) >= 999.5:
        value, power = value / 1000, power + 1
    digits = str(round(value)) if power == 0 and value == int(value) else significant(value)
    return f"{digits}{SPACE}{prefixes[power]}".rstrip(SPACE)


def count(value: float) -> str:
    """Return a count: ``950``, ``1.51 M``, ``8.03 B``."""
    return scaled(value, ("", "k", "M", "B", "T"))


def file_size(value: float) -> str:
    """Return what lies on disk: ``6.02 MB``."""
    return _bytes(value, format_file_size)


def memory(value: float) -> str:
    """Return an amount of memory: ``5.74 MiB``."""
    return _bytes(value, format_memory)


def _bytes(value: float, write: Callable[[float], str]) -> str:
    return write(value).replace(" ", SPACE).replace("-", MINUS) if math.isfinite(value) else "not finite"


def share(value: float) -> str:
    """Return a share as percent with one decimal: ``84.1 %``."""
    return f"{100 * value:.1f}{SPACE}%".replace("-", MINUS) if math.isfinite(value) else "not finite"


def signed_points(value: float) -> str:
    """Return a difference of two shares in percentage points: ``−2.1 points``."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{100 * value:+.1f}"
    text = "0.0" if float(text) == 0 else text.replace("-", MINUS)
    return f"{text}{SPACE}points"


def points(value: float) -> str:
    """Return the size of a difference of two shares: ``2.1 points``."""
    return signed_points(abs(value)).removeprefix("+")


def duration(seconds: float) -> str:
    """Return a stretch of time: ``420 ms``, ``12.3 s``, ``4 min 10 s``, ``3 h 12 min``."""
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 0.9995:
        return f"{significant(seconds * 1000)}{SPACE}ms"
    if seconds < 120:
        return f"{significant(seconds)}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes}{SPACE}min {rest}{SPACE}s" if rest else f"{minutes}{SPACE}min"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def ratio(value: float) -> str:
    """Return a factor: ``0.24×``, ``1.04×``, ``7.1×``, ``31×``."""
    if not math.isfinite(value):
        return "not finite"
    decimals = 2 if value < 1.995 else 1 if value < 9.95 else 0
    return f"{value:.{decimals}f}{TIMES}"


def compared(times: float, more: str, less: str, same: str) -> str:
    """Return a factor in words; within 5 % it is called the same: more would be claimed than a run can show."""
    if abs(times - 1) < 0.05:
        return same
    return f"{ratio(times)} {more}" if times > 1 else f"{ratio(1 / times)} {less}"


def dollars(value: float) -> str:
    """Return an amount in US dollars, to the cent where that is precise enough: ``$3.50``, ``$0.0123``."""
    return f"${value:.2f}" if 0.1 <= value < 100 else f"${significant(value)}"


BY_UNIT: dict[str, Callable[[float], str]] = {
    "share": share,
    "points": signed_points,
    "bytes": memory,
    "bytes on disk": file_size,
    "s": duration,
    "ms": lambda value: f"{significant(value)}{SPACE}ms",
    "USD": dollars,
    "ratio": ratio,
    "tokens/s": lambda value: f"{count(value)} tok/s",
}


def quantity(value: float, unit: str) -> str:
    """Return a measured value in the way its unit is read."""
    if unit in BY_UNIT:
        return BY_UNIT[unit](value)
    return f"{significant(value)}{SPACE}{unit}".rstrip(SPACE)


def plain(text: str) -> str:
    """Return a printed number without trailing zeros, for an axis: ``0.5 ms`` for ``0.500 ms``."""
    digits, space, unit = text.partition(SPACE)
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + space + unit


def axis(value: float, write: Callable[[float], str] = significant) -> str:
    """Return a number for an axis, where there is little room: ``0.5``, ``2·10⁻⁵``."""
    if value and abs(value) < 1e-3 and write is significant:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{plain(digits)}·10{str(int(power)).translate(SUPERSCRIPT)}".replace("-", MINUS)
    return plain(write(value))


def interval(low: float | None, high: float | None, unit: str) -> str:
    """Return a 95 % interval such as ``82.3 to 85.9 %``, or nothing where there is none."""
    if low is None or high is None:
        return ""
    first, last = quantity(low, unit), quantity(high, unit)
    value, _, suffix = first.rpartition(SPACE)
    shared = value and last.endswith(SPACE + suffix)
    return f"{value if shared else first} to {last}"
