"""What a tokenizer's tokens say, in bytes: where two cuts of one text have read equally far.

A piece of text is written in its tokenizer's own way: bytes as printable characters (GPT-2's kind), a sign for the
space, a byte by its number, a mark at the inside or the end of a word. Taken back to the text's UTF-8 bytes, pieces of
the same text are the same bytes however it was cut; positions in characters would not tell apart the parts of one.
"""

import re
from itertools import accumulate

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from compress.models.tokenizer_json import SPACE

REPLACEMENT = "\ufffd"
"""What a part of a character is read back as."""

NUMBERED = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte where the vocabulary falls back on bytes."""

LOST_AT_BORDERS = re.compile(rb"(?:[\x80-\xbf ]|\xef\xbf\xbd)*")
"""What reading a row back and cutting it again may lose or add at its start: a space, the end of a character."""


class Spelling:
    """The bytes of a tokenizer's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = tokenizer.backend_tokenizer
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self._prefix: str = getattr(backend.model, "continuing_subword_prefix", None) or ""
        self._suffix: str = getattr(backend.model, "end_of_word_suffix", None) or ""
        self._falls_back = bool(getattr(backend.model, "byte_fallback", False))
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        self._bytes = {c: byte for byte, c in bytes_to_unicode().items()} if b"ByteLevel" in decoder else {}

    def __call__(self, ids: list[int]) -> list[bytes]:
        """Return the bytes of each token. Words that a tokenizer keeps apart without a space have none between."""
        return [
            self._added[index].encode() if index in self._added else self._spelled(token)
            for index, token in zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True)
        ]

    def _spelled(self, token: str) -> bytes:
        if self._falls_back and (number := NUMBERED.fullmatch(token)):
            return bytes([int(number[1], 16)])
        text = token.removeprefix(self._prefix).removesuffix(self._suffix)
        if self._bytes and all(c in self._bytes for c in text):
            return bytes(self._bytes[c] for c in text)
        return text.replace(SPACE, " ").encode()


def aligned(theirs: list[bytes], own: list[bytes]) -> tuple[list[tuple[int, int]], bool]:
    """Return the tokens (own, theirs) after which both cuts have read the same bytes, and whether all are the same.

    theirs, own: the tokens' bytes in two cuts of one text. A space or a part of a character may be missing at the
    start or the end of one of them: that is no difference.
    """
    texts = b"".join(theirs), b"".join(own)
    starts = [_lost(text) for text in texts]
    inner = [text[start:] for text, start in zip(texts, starts, strict=True)]
    num_same = _num_equal(*inner)
    ends = [_ends(tokens, start, num_same) for tokens, start in zip((theirs, own), starts, strict=True)]
    pairs = [(ends[1][end], index) for end, index in ends[0].items() if end in ends[1]]
    rest = b"".join(text[num_same:] for text in inner).decode(errors="replace")
    return pairs, not rest.strip(REPLACEMENT + " ")


def _lost(text: bytes) -> int:
    found = LOST_AT_BORDERS.match(text)
    return found.end() if found else 0


def _num_equal(one: bytes, other: bytes) -> int:
    """Return the length of what both begin with."""
    places = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in places if a != b), min(len(one), len(other)))


def _ends(tokens: list[bytes], start: int, num_same: int) -> dict[int, int]:
    """Return the token that ends after so many bytes from `start`, of those within the same bytes; ascending."""
    ends = accumulate(map(len, tokens))
    return {end - start: index for index, end in enumerate(ends) if 0 < end - start <= num_same}
