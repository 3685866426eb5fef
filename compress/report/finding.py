"""One sentence about a run, and whether it is good news."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "warn", "plain"]


@dataclass(frozen=True)
class Finding:
    """What was found, in words; the tone decides its mark and colour."""

    tone: Tone
    text: str
