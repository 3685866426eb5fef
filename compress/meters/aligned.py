"""Two models that read one text in different cuts, compared wherever both have read the same of it.

Each reads its own rows once. Where a row's cuts differ, their positions drift apart, and the logits of what belongs
together come at different times: the teacher's wait, as few as the order allows, for the student's.

Shapes: B sequences, T positions, N predicted tokens of the student, P positions at which both have read the same text,
M of them at once, V vocabulary, K tokens that both have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.backends.interface import Backend
from compress.meters.divergence import (
    Batch,
    TextScores,
    among,
    chunk_positions,
    compare,
    piece_rows,
)
from compress.meters.halving import in_parts


@dataclass(frozen=True)
class Recut:
    """Sequences as both models cut them."""

    own: Batch
    """The student's ids and mask, padded on the right."""
    theirs: Batch
    """The teacher's."""
    places: Tensor
    """Sequence, the student's position and the teacher's ``[P, 3]``, where both have read the same text."""

    def __len__(self) -> int:
        return len(self.own[0])

    def part(self, start: int, stop: int) -> "Recut":
        """Return some of the sequences."""
        of_P = self.places[:, 0]
        places_P3 = self.places[(of_P >= start) & (of_P < stop)] - torch.tensor([start, 0, 0])
        (own, own_mask), (theirs, their_mask) = self.own, self.theirs
        rows = slice(start, stop)
        return Recut((own[rows], own_mask[rows]), (theirs[rows], their_mask[rows]), places_P3)


@dataclass(frozen=True)
class Divergences:
    """How far two models are apart at each of P positions."""

    sequence: Tensor
    """Index of the sequence it stands in."""
    kl: Tensor
    """KL(teacher‖student) over the tokens both have, in nats."""
    same_top: Tensor
    """Whether the likeliest of these tokens is the same."""
    kept_mass: Tensor | None
    """The teacher's probability of these tokens; `None` when every id means the same to both."""

    @classmethod
    def of(cls, scores: TextScores) -> "Divergences | None":
        """Return what a text's scores hold of them."""
        if scores.kl is None or scores.same_top is None:
            return None
        return cls(scores.sequence, scores.kl, scores.same_top, scores.kept_mass)


def joined(parts: Sequence[Divergences]) -> Divergences | None:
    """Return the positions of all parts, each with sequences of its own; `None` where there are none."""
    if not sum(len(part.kl) for part in parts):
        return None
    masses = [part.kept_mass for part in parts if part.kept_mass is not None]
    return Divergences(
        _numbered([part.sequence for part in parts]),
        torch.cat([part.kl for part in parts]),
        torch.cat([part.same_top for part in parts]),
        torch.cat(masses) if masses else None,
    )


def joined_texts(parts: Sequence[TextScores]) -> TextScores:
    """Return the nats of all parts, each with sequences of its own; a part alone with all that is known of it."""
    if len(parts) == 1:
        return parts[0]
    return TextScores(torch.cat([part.nats for part in parts]), _numbered([part.sequence for part in parts]))


def _numbered(parts: Sequence[Tensor]) -> Tensor:
    """Return numbers of sequences, those of each part after the last of the part before."""
    first, found = 0, []
    for sequence_N in parts:
        found.append(sequence_N + first)
        first = int(found[-1].max()) + 1 if len(sequence_N) else first
    return torch.cat(found)


def score_recut(
    student: Backend,
    teacher: Backend,
    batches: Iterable[Recut],
    teacher_ids: Tensor,
    on_batch: Callable[[int], None] = lambda num_sequences: None,
    on_halved: Callable[[str], None] = lambda said: None,
) -> tuple[TextScores, Divergences]:
    """Return the student's score of every token that has a predecessor, and its divergence where cuts meet.

    `teacher_ids` ``[K]``: the teacher's id of each of the student's. `on_batch` hears of sequences done, `on_halved`
    of batches that memory is too small for.
    """
    texts: list[tuple[Tensor, ...]] = []
    compared: list[tuple[Tensor, ...]] = []
    num_sequences = 0
    for batch in batches:

        def work(start: int, stop: int, batch: Recut = batch) -> tuple[int, Columns, Columns]:
            part = batch.part(start, stop)
            return len(part), *_score_batch(student, teacher, part, teacher_ids)

        for size, read, apart in in_parts(work, len(batch), on_halved):
            for columns, (sequence, *figures) in ((texts, read), (compared, apart)):
                columns.append((sequence + num_sequences, *figures))
            num_sequences += size
        on_batch(num_sequences)
    sequence_N, nats_N = (torch.cat(column) for column in zip(*texts, strict=True))
    sequence_P, kl_P, same_top_P, mass_P = (torch.cat(column) for column in zip(*compared, strict=True))
    return TextScores(nats_N, sequence_N), Divergences(sequence_P, kl_P, same_top_P.bool(), mass_P)


Columns = tuple[Tensor, ...]


def _score_batch(
    student: Backend, teacher: Backend, batch: Recut, teacher_ids: Tensor
) -> tuple[Columns, Columns]:
    """Return sequence and nats ``[N]`` of each token; sequence, KL, same top and kept mass ``[P]`` of each place."""
    (ids_BT, mask_BT), models = batch.own, (student, teacher)
    real_BT = mask_BT.bool()
    # By column: the order in which any runtime gives them.
    column_N, row_N = (real_BT[:, :-1] & real_BT[:, 1:]).T.nonzero().T
    number_BT = torch.full(ids_BT.shape, -1)
    number_BT[row_N, column_N] = torch.arange(len(row_N))
    places_P3 = batch.places[number_BT[batch.places[:, 0], batch.places[:, 1]].argsort()]
    place_N = torch.full((len(row_N),), -1)
    place_N[number_BT[places_P3[:, 0], places_P3[:, 1]]] = torch.arange(len(places_P3))
    chunk = chunk_positions(len(ids_BT), models)
    size = piece_rows(models)
    stream = teacher.logits_at(*batch.theirs, places_P3[:, 0], places_P3[:, 2], chunk)
    waiting = _Waiting(stream, teacher_ids, len(places_P3))
    nats_N = torch.zeros(len(row_N))
    figures_P3 = torch.zeros(len(places_P3), 3)
    for which_C, logits_CV in student.logits_at(ids_BT, mask_BT, row_N, column_N, chunk):
        for which_M, logits_MV in _pieces(which_C, logits_CV.float(), size):
            targets_M = ids_BT[row_N[which_M], column_N[which_M] + 1].to(logits_MV.device)
            nats_N[which_M] = -logits_MV.log_softmax(-1).gather(-1, targets_M[:, None])[:, 0].cpu()
            is_place_M = place_N[which_M] >= 0
            asked = place_N[which_M][is_place_M]
            figures_P3[asked] = _divergence(logits_MV[is_place_M.to(logits_MV.device)], *waiting.take(asked))
    kl_P, same_top_P, mass_P = figures_P3.T
    return (row_N, nats_N), (places_P3[:, 0], kl_P, same_top_P, mass_P)


def _pieces(which_C: Tensor, logits_CV: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(which_C), size):
        yield which_C[start : start + size], logits_CV[start : start + size]


def _divergence(own_MV: Tensor, theirs_MK: Tensor, mass_M: Tensor) -> Tensor:
    """Return KL, same top and kept mass ``[M, 3]`` on the processor."""
    log_p_MK = theirs_MK.to(own_MV.device).log_softmax(-1)
    log_q_MK = own_MV[:, : theirs_MK.shape[-1]].log_softmax(-1)
    return torch.stack([column.float().cpu() for column in (*compare(log_p_MK, log_q_MK), mass_M)], dim=-1)


class _Waiting:
    """The teacher's logits of the tokens both have, from when they come to when the student's of that place do."""

    def __init__(self, stream: Iterator[tuple[Tensor, Tensor]], ids_K: Tensor, num_places: int) -> None:
        self._stream, self._ids_K = stream, ids_K
        self._piece_P = torch.full((num_places,), -1)
        self._row_P = torch.full((num_places,), -1)
        self._pieces: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_left: dict[int, int] = {}

    def take(self, asked_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``[M, K]`` of these places and the probability of all K together ``[M]``."""
        while bool((self._piece_P[asked_M] < 0).any()):
            self._receive(*next(self._stream))
        numbers: list[int] = sorted(set(self._piece_P[asked_M].tolist()))
        parts = [self._take_from(number, asked_M) for number in numbers]
        if not parts:
            return torch.zeros(0, len(self._ids_K)), torch.zeros(0)
        order_M = torch.cat([where for where, _, _ in parts]).argsort()
        logits_MK, mass_M = (torch.cat([part[column] for part in parts]) for column in (1, 2))
        order_M = order_M.to(logits_MK.device)
        return logits_MK[order_M], mass_M[order_M]

    def _receive(self, which_M: Tensor, logits_MV: Tensor) -> None:
        number = len(self._num_left)
        self._num_left[number] = len(which_M)
        if len(which_M):
            self._pieces[number] = among(logits_MV.float(), self._ids_K.to(logits_MV.device))
            self._piece_P[which_M], self._row_P[which_M] = number, torch.arange(len(which_M))

    def _take_from(self, number: int, asked_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        where_m = (self._piece_P[asked_M] == number).nonzero()[:, 0]
        logits_MK, mass_M = self._pieces[number]
        row_m = self._row_P[asked_M[where_m]].to(logits_MK.device)
        self._num_left[number] -= len(where_m)
        if not self._num_left[number]:
            del self._pieces[number]
        return where_m, logits_MK[row_m], mass_M[row_m]
