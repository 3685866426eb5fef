"""Writes a stream of encoded documents as the files of a `tokens` folder, row after row."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from compress.data.encode import Encoded
from compress.data.marks import LEARNED, STARTS, MarkWriter, count_marks
from compress.data.tokens import BIN
from compress.records import JsonValue


class RowWriter:
    """Ids, starts and what is to be learned, side by side; counts what it writes."""

    def __init__(self, folder: Path, sequence_length: int, dtype: np.dtype[Any]) -> None:
        self._folder, self._length, self._dtype = folder, sequence_length, dtype
        self._files = ExitStack()
        self._ids = self._files.enter_context((folder / BIN).open("wb"))
        self._starts = self._files.enter_context(MarkWriter(folder / STARTS, sequence_length))
        self._learned = self._files.enter_context(MarkWriter(folder / LEARNED, sequence_length))
        self.num_documents = self.num_tokens = self._num_bytes = 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def write(self, document: Encoded) -> None:
        """Append a document."""
        starts = np.zeros(len(document.ids), dtype=bool)
        starts[:1] = True
        self._ids.write(document.ids.astype(self._dtype).tobytes())
        self._starts.write(starts)
        self._learned.write(document.learned)
        self.num_documents += 1
        self.num_tokens += len(document.ids)
        self._num_bytes += document.num_bytes

    def finish(self, num_sequences: int) -> dict[str, JsonValue]:
        """Drop what comes after so many rows and return what ``tokens.json`` says of them.

        Where everything is to be learned no file says so.
        """
        num_tokens = num_sequences * self._length
        self._ids.truncate(num_tokens * self._dtype.itemsize)
        self._starts.keep(num_sequences)
        self._learned.keep(num_sequences)
        self._files.close()
        num_learned = count_marks(self._folder / LEARNED)
        if num_learned == num_tokens:
            (self._folder / LEARNED).unlink()
        return {
            "num_sequences": num_sequences,
            "sequence_length": self._length,
            "dtype": self._dtype.str,
            "marks": [STARTS] if num_learned == num_tokens else [STARTS, LEARNED],
            "documents": self.num_documents,
            "tokens": num_tokens,
            "learned_tokens": num_learned,
            # The rest that fills no row is taken off in proportion: text has no byte where a row ends.
            "text_bytes": round(self._num_bytes * num_tokens / self.num_tokens),
        }
