"""Writes a stream of encoded documents as the files of a `tokens` folder, row after row.

A row that begins within a document begins with the mark that a text begins with: many models read nothing right without
it (Gemma 3's perplexity doubles). It is the first of its row, and so no target.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import Field

from compress.data.encode import Encoded
from compress.data.marks import LEARNED, STARTS, MarkWriter, count_marks
from compress.data.row_file import RowFile, Saved
from compress.data.tokens import BIN
from compress.records import JsonValue, Record


class Written(Record):
    """What was written so far."""

    num_documents: int = 0
    num_tokens: int = 0
    """Of these documents, those that fill no row included."""
    num_bytes: int = 0
    """Of their texts in UTF-8."""
    files: dict[str, Saved] = Field(default_factory=dict)

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder's files are as they were when this was returned, but for what came after."""
        return all(saved.is_in(folder / name) for name, saved in self.files.items())


class RowWriter:
    """Ids, starts and what is to be learned, side by side; counts what it writes."""

    def __init__(
        self,
        folder: Path,
        sequence_length: int,
        dtype: np.dtype[Any],
        most_rows: int | None = None,
        written: Written | None = None,
        row_start: int | None = None,
    ) -> None:
        """`most_rows`: rows after which nothing is kept. `written`: what to go on from, which is in the folder.

        `row_start`: the id every row begins with.
        """
        self._row_start = row_start
        self._folder, self._length, self._dtype = folder, sequence_length, dtype
        self._most_tokens = None if most_rows is None else most_rows * sequence_length
        written = written or Written()
        self.num_documents, self.num_tokens = written.num_documents, written.num_tokens
        self._num_bytes, saved = written.num_bytes, written.files
        self._open = ExitStack()
        ids = RowFile(folder / BIN, sequence_length, self._stored, np.int64, saved.get(BIN))
        self._files: dict[str, RowFile] = {
            BIN: self._open.enter_context(ids),
            **{
                name: self._open.enter_context(MarkWriter(folder / name, sequence_length, saved.get(name)))
                for name in (STARTS, LEARNED)
            },
        }

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def write(self, document: Encoded) -> None:
        """Append a document."""
        cuts = self._cuts(document.ids)
        # Whether a row's first is learned is never asked: where all else is, so is it, and no file need say so.
        learned = np.insert(document.learned, cuts, document.learned.all()) if cuts else document.learned
        ids = np.insert(document.ids, cuts, self._row_start or 0) if cuts else document.ids
        starts = np.zeros(len(ids), dtype=bool)
        starts[:1] = True
        room = None if self._most_tokens is None else max(0, self._most_tokens - self.num_tokens)
        self._files[BIN].write(ids[:room])
        self._files[STARTS].write(starts[:room])
        self._files[LEARNED].write(learned[:room])
        self.num_documents += 1
        self.num_tokens += len(ids)
        self._num_bytes += document.num_bytes

    def _cuts(self, ids: "np.ndarray[Any, Any]") -> list[int]:
        """Return the places in a document at which a row begins without the mark it should begin with."""
        if self._row_start is None:
            return []
        cuts, place = [], -self.num_tokens % self._length
        while place < len(ids):
            lacks = ids[place] != self._row_start
            if lacks:
                cuts.append(place)
            place += self._length - lacks
        return cuts

    def save(self) -> Written:
        """Put on disk what was written; return what a later process needs to go on."""
        return Written(
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            num_bytes=self._num_bytes,
            files={name: file.save() for name, file in self._files.items()},
        )

    def finish(self, num_sequences: int, folder: Path) -> dict[str, JsonValue]:
        """Put the files, which hold so many rows, into a folder; return what ``tokens.json`` says of them.

        They stay where they were written, too, and as they are: a kill at the very end loses nothing. Where everything
        is to be learned no file says so.
        """
        num_tokens = num_sequences * self._length
        self._open.close()
        num_learned = count_marks(self._folder / LEARNED)
        marks = [STARTS] if num_learned == num_tokens else [STARTS, LEARNED]
        for name in (BIN, *marks):
            _link(self._folder / name, folder / name)
        return {
            "num_sequences": num_sequences,
            "sequence_length": self._length,
            "dtype": self._dtype.str,
            "marks": [*marks],
            "documents": self.num_documents,
            "tokens": num_tokens,
            "learned_tokens": num_learned,
            # The rest that fills no row is taken off in proportion: text has no byte where a row ends.
            "text_bytes": round(self._num_bytes * num_tokens / self.num_tokens),
        }

    def _stored(self, ids_nT: "np.ndarray[Any, Any]") -> bytes:
        return ids_nT.astype(self._dtype).tobytes()


def _link(file: Path, into: Path) -> None:
    """Give a file a second name, or where the file system has no such thing a copy."""
    try:
        os.link(file, into)
    except OSError:
        shutil.copyfile(file, into)
