"""How far one model's predictions are from another's, both run a layer at a time.

Shapes: B sequences, T tokens, C tokens of a chunk, H hidden channels, V vocabulary, S sequences of all batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import sqrt

import torch
from torch import Tensor, nn

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
    every: of so many positions in a row, one is judged.
    """

    def __init__(
        self,
        teacher: LayerwiseModel,
        batches: Sequence[Tensor],
        teacher_ids: Tensor | None = None,
        every: int = 1,
    ) -> None:
        self.batches, self._teacher, self._teacher_ids, self._every = batches, teacher, teacher_ids, every
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

    @torch.inference_mode()
    def likeliest_ids(self, count: int) -> Tensor:
        """Return the ids that have most of the teacher's probability at the judged positions, ``[count]``, sorted."""
        total_V = torch.zeros(self._teacher.layout.vocab, dtype=torch.float64)
        for ids_BT, states_BTH in zip(self._theirs, self._leaving, strict=True):
            ids_BT, states_BTH = ids_BT[:, :: self._every], states_BTH[:, :: self._every]
            chunk = max(1, CHUNK_ELEMENTS // (len(ids_BT) * len(total_V)))
            for start in range(0, ids_BT.shape[1], chunk):
                part = slice(start, start + chunk)
                logits_BCV = self._teacher.logits(ids_BT[:, part], states_BTH[:, part])
                total_V += logits_BCV.float().softmax(-1).sum((0, 1)).double().cpu()
        return total_V.topk(count).indices.sort().values

    def _per_sequence(
        self, student: LayerwiseModel, ids_BT: Tensor, own_BTH: Tensor, theirs_BT: Tensor, other_BTH: Tensor
    ) -> Tensor:
        """Return the mean divergence of every sequence, fp64 ``[B]`` on the CPU."""
        ids_BT, own_BTH, theirs_BT, other_BTH = (
            each[:, :: self._every] for each in (ids_BT, own_BTH, theirs_BT, other_BTH)
        )
        num_sequences, length = ids_BT.shape
        vocabulary = max(num_ids(student), num_ids(self._teacher))
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


def num_ids(model: LayerwiseModel) -> int:
    """Return how many ids a model's logits are of: its vocabulary, or those within `among`."""
    head = model.model.get_output_embeddings()
    return head.out_features if isinstance(head, nn.Linear) else model.layout.vocab


@contextmanager
def among(model: LayerwiseModel, ids_K: Tensor) -> Iterator[None]:
    """Have a model make logits of some ids only, ``[…, K]``: its head has but their rows meanwhile."""
    whole = model.model.get_output_embeddings()
    assert isinstance(whole, nn.Linear)
    head = nn.Linear(whole.in_features, len(ids_K), bias=whole.bias is not None, device="meta")
    head.weight = nn.Parameter(whole.weight[ids_K], requires_grad=False)
    if whole.bias is not None:
        head.bias = nn.Parameter(whole.bias[ids_K], requires_grad=False)
    model.model.set_output_embeddings(head)
    try:
        yield
    finally:
        model.model.set_output_embeddings(whole)


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
    torch.sub(
        log_p_BCV, log_q_BCV, out=log_q_BCV
    )  # in place: of many ids, new room takes longer than the sums
    return log_p_BCV.exp_().mul_(log_q_BCV).sum(-1).clamp(min=0.0)
