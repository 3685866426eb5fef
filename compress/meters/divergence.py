"""How a model scores a text, and how far its predictions are from a teacher's.

Accuracy saturates and perplexity hides damage that cancels out; the divergence of the whole next-token
distribution does neither. Teacher and student read the same rows side by side, a few positions at a time, so
that the two vocabulary-sized distributions never exist for a whole sequence.

Shapes: B sequences, T positions, C positions of a chunk, R rows of logits, V vocabulary, N scored tokens of all
sequences.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from compress.backends.interface import Backend
from compress.meters.clusters import Estimate, clustered_mean
from compress.meters.halving import in_parts
from compress.speed import LOGITS_AT_ONCE

CHUNK_ELEMENTS = LOGITS_AT_ONCE
"""Logits held at once, per model."""

PIECE_ELEMENTS = 2**21
"""Of a chunk's logits, those that are compared at once: 8 MiB each of several tensors, which need no new memory every
time. That takes 0.7 times as long as 128 rows of 262,144 ids at once, and 0.55 times where 32,000 of them are kept."""

CUDA_CHUNK_ELEMENTS = 2**28
"""The same where GPUs compute: fewer would read all of the head's weights again for a few positions."""

CUDA_PIECES = 4
"""Pieces in which such a chunk is compared: several tensors of a piece's size are needed for that."""

Batch = tuple[Tensor, Tensor]
"""Token ids and mask, both ``[B, T]``."""


@dataclass(frozen=True)
class TextScores:
    """What a pass over a text leaves, one entry for each of the N predicted tokens."""

    nats: Tensor
    """Negative log-probability of the token."""
    sequence: Tensor
    """Index of the sequence it stands in: tokens of one sequence are not independent."""
    kl: Tensor | None = None
    """KL(teacher‖student) at its position in nats; `None` when there was no teacher."""
    same_top: Tensor | None = None
    """Whether both models would have chosen the same token."""
    kept_mass: Tensor | None = None
    """The teacher's probability of all tokens the student has too; `None` when every id means the same to both."""
    teacher_nats: Tensor | None = None
    """The teacher's own negative log-probability of the token, where every id means the same to both."""

    @property
    def cross_entropy(self) -> Estimate:
        """Nats a token."""
        return clustered_mean(self.nats, self.sequence)

    @property
    def perplexity(self) -> Estimate:
        """exp(cross-entropy), its interval carried through the exponential."""
        nats = self.cross_entropy
        low, high = (None if bound is None else exp(bound) for bound in (nats.low, nats.high))
        return Estimate(exp(nats.mean), low, high, nats.n, nats.degrees)

    @property
    def nats_above_teacher(self) -> Estimate | None:
        """Nats a token more than the teacher's, of the same tokens: paired, so the text's own spread is not in it."""
        if self.teacher_nats is None:
            return None
        return clustered_mean(self.nats.double() - self.teacher_nats.double(), self.sequence)

    def bits_per_byte(self, num_bytes: int) -> float:
        """Comparable between tokenizers: bits of the whole text over its UTF-8 length."""
        return float(self.nats.double().sum()) / log(2) / num_bytes


def score_text(
    student: Backend,
    batches: Iterable[Batch],
    teacher: Backend | None = None,
    on_batch: Callable[[int], None] = lambda num_sequences: None,
    teacher_ids: Tensor | None = None,
    on_halved: Callable[[str], None] = lambda said: None,
) -> TextScores:
    """Return the student's score of every token that has a predecessor, beside the teacher's if there is one.

    Where the vocabularies differ in size the distributions are compared, and normalized, over the ids both
    have: padded vocabularies of one family share their token ids from 0 on. A student with a pruned vocabulary
    gives `teacher_ids` ``[V]``, the teacher's id of each of its own: the teacher reads the same tokens under those,
    and its distribution is normalized over them, since a token the student cannot say would make every divergence
    infinite. How much of the teacher's distribution that leaves is `kept_mass`. `on_batch` hears of sequences done,
    `on_halved` of batches that memory is too small for.
    """
    columns: list[tuple[Tensor, ...]] = []
    num_sequences = 0
    for ids_BT, mask_BT in batches:

        def work(
            start: int, stop: int, ids_BT: Tensor = ids_BT, mask_BT: Tensor = mask_BT
        ) -> tuple[Tensor, list[Tensor]]:
            rows = slice(start, stop)
            return _score_batch(student, teacher, ids_BT[rows], mask_BT[rows], teacher_ids)

        for scored_BT, figures in in_parts(work, len(ids_BT), on_halved):
            sequence_BT = torch.arange(len(scored_BT))[:, None].expand_as(scored_BT) + num_sequences
            columns.append((sequence_BT[scored_BT], *(figure_BT[scored_BT] for figure_BT in figures)))
            num_sequences += len(scored_BT)
        on_batch(num_sequences)
    sequence_N, nats_N, *compared = (torch.cat(column) for column in zip(*columns, strict=True))
    names = ("kl", "same_top", "teacher_nats" if teacher_ids is None else "kept_mass")
    return TextScores(nats_N, sequence_N, **dict(zip(names, compared, strict=False)))


def chunk_positions(num_sequences: int, models: Sequence[Backend]) -> int:
    """Return how many positions of a batch may have their logits, of every model, in memory at once."""
    elements = CUDA_CHUNK_ELEMENTS if all(model.on_cuda for model in models) else CHUNK_ELEMENTS
    within = elements // (num_sequences * max(model.vocabulary for model in models))
    return max(within, *(model.fewest_positions for model in models))


def piece_rows(models: Sequence[Backend]) -> int:
    """Return how many rows of logits are compared at once."""
    on_cuda = all(model.on_cuda for model in models)
    elements = CUDA_CHUNK_ELEMENTS // CUDA_PIECES if on_cuda else PIECE_ELEMENTS
    return max(1, elements // max(model.vocabulary for model in models))


def _score_batch(
    student: Backend, teacher: Backend | None, ids_BT: Tensor, mask_BT: Tensor, teacher_ids: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return which positions predict a real token, and what `_score_rows` returns of them, all ``[B, T-1]``."""
    models, readings = [student], [ids_BT]
    if teacher is not None:
        models.append(teacher)
        readings.append(ids_BT if teacher_ids is None else teacher_ids[ids_BT])
    chunk = chunk_positions(len(ids_BT), models)
    real_BT = mask_BT.bool().cpu()
    size = piece_rows(models)
    parts: list[list[Tensor]] = []
    start = 0
    passes = zip(models, readings, strict=True)
    for logits in zip(*(model.logits_chunks(ids, mask_BT, chunk) for model, ids in passes), strict=True):
        stop = min(start + logits[0].shape[1], ids_BT.shape[1] - 1)
        if stop <= start:
            break
        targets_BC = ids_BT[:, start + 1 : stop + 1]
        rows = [logits_BCV[:, : stop - start].flatten(0, 1) for logits_BCV in logits]
        pieces = [
            _score_rows(
                [logits_RV[at : at + size] for logits_RV in rows],
                targets_BC.flatten()[at : at + size],
                teacher_ids,
            )
            for at in range(0, targets_BC.numel(), size)
        ]
        parts.append([torch.cat(column).view(targets_BC.shape) for column in zip(*pieces, strict=True)])
        start = stop
    figures = [torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True)]
    return real_BT[:, :-1] & real_BT[:, 1:], figures


def _score_rows(logits: list[Tensor], targets_R: Tensor, teacher_ids: Tensor | None) -> list[Tensor]:
    """Return nats ``[R]`` of the first model, on the CPU; beside a second what `compare` says of both as well.

    Last comes the second's own nats or, of other ids, its kept mass.
    """
    own_RV, *others = (logits_RV.float() for logits_RV in logits)
    theirs_RV, last = None, list[Tensor]()
    if others:
        theirs_RV = others[0].to(own_RV.device)
        if teacher_ids is not None:
            theirs_RV, kept_mass_R = among(theirs_RV, teacher_ids.to(theirs_RV.device))
            last = [kept_mass_R]
        vocabulary = min(own_RV.shape[-1], theirs_RV.shape[-1])
        own_RV, theirs_RV = own_RV[:, :vocabulary], theirs_RV[:, :vocabulary]
    log_q_RV = own_RV.log_softmax(-1)
    targets_R1 = targets_R.to(log_q_RV.device)[:, None]
    nats_R = -log_q_RV.gather(-1, targets_R1)[:, 0]
    compared: list[Tensor] = []
    if theirs_RV is not None:
        log_p_RV = theirs_RV.log_softmax(-1)
        last = last or [-log_p_RV.gather(-1, targets_R1)[:, 0]]
        compared = compare(log_p_RV, log_q_RV)
    return [figure_R.cpu() for figure_R in (nats_R, *compared, *last)]


def among(logits_RV: Tensor, ids_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of some ids ``[R, K]`` and the probability of all of them together ``[R]``."""
    chosen_RK = logits_RV[:, ids_K]
    return chosen_RK, (chosen_RK.logsumexp(-1) - logits_RV.logsumexp(-1)).exp().clamp(max=1.0)


def compare(log_p_RV: Tensor, log_q_RV: Tensor) -> list[Tensor]:
    """Return KL(p‖q) in nats and whether both have their maximum at the same id, ``[R]`` each.

    Both tensors are overwritten: of a large vocabulary, room for what lies between takes longer than the arithmetic.
    """
    same_top_R = log_p_RV.argmax(-1) == log_q_RV.argmax(-1)
    torch.sub(log_p_RV, log_q_RV, out=log_q_RV)
    kl_R = log_p_RV.exp_().mul_(log_q_RV).sum(-1)
    # Rounding alone can leave a hair below zero.
    return [kl_R.clamp(min=0.0), same_top_R]
