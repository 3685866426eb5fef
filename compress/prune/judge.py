"""How far one model's predictions are from another's, both run a layer at a time.

Shapes: B sequences, T tokens, C tokens of a chunk, H hidden channels, V vocabulary, S sequences of all batches.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import torch
from torch import Tensor

from compress.models.layerwise import LayerwiseModel

CHUNK_ELEMENTS = 2**24
"""Logits held at once, per model: 64 MiB in fp32."""


@dataclass(frozen=True)
class Divergence:
    """Mean KL(teacher ‖ student) in nats a token, and its standard error over sequences (0 where there is one)."""

    divergence: float
    error: float

    def as_facts(self) -> dict[str, float]:
        return asdict(self)


class Judge:
    """A teacher on some text: what leaves its last layer is kept, logits are made again a chunk at a time.

    teacher_ids: the teacher's id of each of the students' ids ``[V]`` where a vocabulary was pruned in between;
    distributions are then compared over those, normalized among them.
    """

    def __init__(
        self, teacher: LayerwiseModel, batches: Sequence[Tensor], teacher_ids: Tensor | None = None
    ) -> None:
        self.batches, self._teacher, self._teacher_ids = batches, teacher, teacher_ids
        with torch.inference_mode():
            self._theirs = [ids if teacher_ids is None else teacher_ids[ids] for ids in batches]
            self._leaving = last_states(teacher, self._theirs)

    @torch.inference_mode()
    def divergence(self, student: LayerwiseModel, leaving: Sequence[Tensor]) -> Divergence:
        """Return how far the student is, given what left its last layer on the batches, ``[B, T, H]`` each."""
        means_S = torch.cat([
            self._per_sequence(student, *batch)
            for batch in zip(self.batches, leaving, self._theirs, self._leaving, strict=True)
        ])  # fmt: skip
        count = len(means_S)
        error = float(means_S.std()) / sqrt(count) if count > 1 else 0.0
        return Divergence(float(means_S.mean()), error)

    def _per_sequence(
        self, student: LayerwiseModel, ids_BT: Tensor, own_BTH: Tensor, theirs_BT: Tensor, other_BTH: Tensor
    ) -> Tensor:
        """Return the mean divergence of every sequence, fp64 ``[B]`` on the CPU."""
        num_sequences, length = ids_BT.shape
        vocabulary = max(student.layout.vocab, self._teacher.layout.vocab)
        chunk = max(1, CHUNK_ELEMENTS // (num_sequences * vocabulary))
        total_B = torch.zeros(num_sequences, dtype=torch.float64)
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            own_BCV = student.logits(ids_BT[:, part], own_BTH[:, part])
            other_BCV = self._teacher.logits(theirs_BT[:, part], other_BTH[:, part])
            if self._teacher_ids is not None:
                other_BCV = other_BCV[..., self._teacher_ids]
            total_B += _divergences(own_BCV, other_BCV).sum(1).double().cpu()
        return total_B / length


def last_states(model: LayerwiseModel, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return what leaves the last layer: ``[B, T, H]`` for every batch of ids ``[B, T]``."""
    states = [model.embed(ids) for ids in batches]
    for number in range(model.num_layers):
        with model.layer(number):
            states = [model.run(number, state) for state in states]
    return states


def _divergences(student_BCV: Tensor, teacher_BCV: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of every token, over the ids both have: ``[B, C]``."""
    shared = min(student_BCV.shape[-1], teacher_BCV.shape[-1])
    wide = torch.promote_types(student_BCV.dtype, torch.float32)
    log_q_BCV = student_BCV[..., :shared].to(wide).log_softmax(-1)
    log_p_BCV = teacher_BCV[..., :shared].to(wide).log_softmax(-1)
    return (log_p_BCV.exp() * (log_p_BCV - log_q_BCV)).sum(-1).clamp(min=0.0)
