"""Hostile text made plain: what is invisible or moves other letters is shown as its code point.

A model may write anything, and so may whoever named a step: right-to-left overrides that turn a sentence
around, terminal escapes, zero-width letters. Escaping for HTML is the template engine's; this is for the eye.
"""

import unicodedata

_HARMLESS = {"\n", "\t", "\u200c", "\u200d"}
"""Line breaks, and the two joiners that Persian, Hindi and composed emoji are written with."""

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: controls, format characters (bidi marks), lone surrogates, odd line separators."""


def visible(text: str) -> str:
    """Return the text with every control and format character replaced by ``⟨U+202E⟩``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return character not in _HARMLESS and unicodedata.category(character) in _HIDDEN
