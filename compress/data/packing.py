"""Packing that goes on where it was killed: rows so far, and how far each source was read, in the partial work."""

import time
from types import TracebackType
from typing import Any

import numpy as np

from compress.data.interleave import Place
from compress.data.row_writer import RowWriter, Written
from compress.plugins import Context
from compress.records import Record

SAVED = "packed.json"
SAVE_SECONDS = 30.0
"""Between two times that rows are put on disk for good."""
WAITED_SECONDS = 4.0
"""After which it is known how fast tokens come; where not how many, as much again is expected."""
LONG_SECONDS = 10.0
"""Of work that is left: what is gained by sharing it out is more than what beginning to takes."""


class Progress(Record):
    """What a later process goes on from."""

    written: Written
    places: tuple[Place, ...]
    used_chat_template: bool
    is_done: bool = False
    """Whether all that is wanted is written, or there is no more."""


class Packing:
    """The rows of one step, how far its sources are read, and how fast."""

    def __init__(
        self,
        context: Context,
        sequence_length: int,
        dtype: np.dtype[Any],
        most_rows: int | None,
        num_streams: int,
        row_start: int | None = None,
    ) -> None:
        self._context, self._path = context, context.partial / SAVED
        found = self._found()
        self.places = [*found.places] if found else [Place() for _ in range(num_streams)]
        self.used_chat_template = found is not None and found.used_chat_template
        self.is_done = found is not None and found.is_done
        written = found.written if found else None
        self.writer = RowWriter(context.partial, sequence_length, dtype, most_rows, written, row_start)
        self._started, self._started_at = time.monotonic(), self.writer.num_tokens
        self._saved = self._started

    def __enter__(self) -> "Packing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.__exit__(kind, error, trace)

    def takes_long(self, wanted_tokens: int) -> bool:
        """Return whether so much is left that more processes should do it; `wanted_tokens` is 0 for all there are."""
        waited = time.monotonic() - self._started
        if not wanted_tokens or waited < WAITED_SECONDS:
            return waited >= LONG_SECONDS
        return (wanted_tokens - self.writer.num_tokens) / self._rate >= LONG_SECONDS

    @property
    def _rate(self) -> float:
        """Tokens a second since this process began."""
        num_tokens = self.writer.num_tokens - self._started_at
        return max(1, num_tokens) / max(1e-9, time.monotonic() - self._started)

    def report(self, wanted_tokens: int) -> None:
        """Tell how many tokens there are, of how many, and how fast they come."""
        num_tokens = self.writer.num_tokens
        total = max(num_tokens, wanted_tokens)
        self._context.progress(num_tokens, total, "tokens", tokens_per_second=self._rate)

    def save_if_due(self, used_chat_template: bool) -> None:
        """Save now and then; save and leave where the run is to stop."""
        stops = self._context.stopping
        if stops or time.monotonic() - self._saved >= SAVE_SECONDS:
            self._save(used_chat_template)
        if stops:
            self._context.stop()

    def save_at_end(self, used_chat_template: bool) -> None:
        """Save what is whole, if it took long: its files are yet to be checked and committed."""
        if not self.is_done and (self._path.exists() or time.monotonic() - self._started >= SAVE_SECONDS):
            self._save(used_chat_template, is_done=True)

    def _save(self, used_chat_template: bool, is_done: bool = False) -> None:
        progress = Progress(
            written=self.writer.save(),
            places=tuple(self.places),
            used_chat_template=used_chat_template,
            is_done=is_done,
        )
        temporary = self._path.with_suffix(".new")
        temporary.write_text(progress.model_dump_json(), encoding="utf-8")
        temporary.replace(self._path)
        self._saved = time.monotonic()

    def _found(self) -> Progress | None:
        if not self._path.exists():
            return None
        found = Progress.model_validate_json(self._path.read_text(encoding="utf-8"))
        if found.written.is_in(self._context.partial):
            return found
        self._context.warn("what was packed before is damaged: it is packed anew")
        self._path.unlink()
        return None
