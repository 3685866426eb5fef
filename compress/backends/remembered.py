"""A model whose last states of some rows are known: of these its logits cost the head alone.

Beside many students one original reads the same text again and again; what is below its head need not be run for each.
A row that is not known, or that an encoder reads only a part of, is read as ever.

Shapes: S known rows, B sequences, T positions, H hidden channels, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Iterator

from torch import Tensor

from compress.backends.interface import Backend, Cache, Encoder, HeadApart


class KnownRows:
    """Rows of token ids, and what left the model's body at each position."""

    def __init__(self, rows_ST: Tensor, states_STH: Tensor, prefixes_too: bool) -> None:
        """`prefixes_too`: whether a row's beginning has the states it has alone, as in models that look back only."""
        rows: list[tuple[int, ...]] = [tuple(row) for row in rows_ST[: len(states_STH)].tolist()]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        self._sorted = [rows[index] for index in order]
        self._places = order
        self._states_STH, self._prefixes_too = states_STH, prefixes_too

    def find(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor | None:
        """Return the states of a batch padded on the right ``[B, T, H]``, or ``None`` where one is not known."""
        texts: list[tuple[int, ...]] = [
            tuple(ids_T[: int(mask_T.sum())].tolist()) if bool(mask_T[0]) else ()
            for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)
        ]
        places = [self._place(text) for text in texts]
        if None in places:
            return None
        states_BTH = self._states_STH.new_zeros(*ids_BT.shape, self._states_STH.shape[-1])
        for index, (place, text) in enumerate(zip(places, texts, strict=True)):
            assert place is not None
            states_BTH[index, : len(text)] = self._states_STH[place, : len(text)]
        return states_BTH

    def _place(self, text: tuple[int, ...]) -> int | None:
        # Whatever begins with a text follows it directly in lexicographic order.
        at = bisect_left(self._sorted, text)
        if not text or at == len(self._sorted) or self._sorted[at][: len(text)] != text:
            return None
        whole = len(text) == len(self._sorted[at])
        return self._places[at] if whole or self._prefixes_too else None


class Remembered(Backend):
    """A backend that reads known rows by their states."""

    def __init__(self, model: Backend, known: KnownRows) -> None:
        assert isinstance(model, HeadApart)
        self._model, self._head, self._known = model, model, known
        self.runtime, self.vocabulary, self.num_positions = (
            model.runtime,
            model.vocabulary,
            model.num_positions,
        )
        self.on_cuda, self.fewest_positions = model.on_cuda, model.fewest_positions

    @classmethod
    def of(cls, model: Backend, rows_ST: Tensor, states_STH: Tensor) -> "Remembered":
        """Return an opened model that knows its states of these rows ``[S, T]``, or of the first of them."""
        return cls(model, KnownRows(rows_ST, states_STH, prefixes_too=not isinstance(model, Encoder)))

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        states_BTH = self._known.find(ids_BT.cpu(), mask_BT.cpu())
        if states_BTH is None:
            yield from self._model.logits_chunks(ids_BT, mask_BT, chunk)
        else:
            yield from self._head.logits_of(states_BTH, chunk)

    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        return self._model.prefill(ids_BT, mask_BT)

    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self._model.decode(ids_B1, mask_BS, cache)

    def close(self) -> None:
        self._model.close()
