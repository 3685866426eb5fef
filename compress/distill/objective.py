"""Learning from a teacher while it runs: two forward passes, one tile of both models' logits at a time.

Shapes: B sequences, T positions, N tokens of a tile, V ids both models have.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.distill.hidden import NOTHING, HiddenDistance, Matching
from compress.errors import InputError
from compress.train.head import hidden_states, plain_head, project, tiled_loss

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Logits of the student and of the teacher, both fp32 ``[N, V]`` → divergences ``[N]`` in nats."""


class Distillation(nn.Module):
    """``(1 − w) · T² · D(teacher ‖ student) + w · CE + h · H``, summed over every token that has a next one.

    Distributions are compared over the ids both models have: vocabularies of one tokenizer differ only in
    padding. A student with a pruned vocabulary learns the teacher's distribution over its own tokens, normalized
    among them; the teacher reads the same tokens under its own ids. T² keeps the gradient's size independent of
    the temperature (Hinton et al. 2015, §2.1). H compares hidden states (`compress.distill.hidden`).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        divergence: Divergence,
        temperature: float,
        label_weight: float,
        num_ids: int,
        teacher_ids: Sequence[int] | None = None,
        hidden_weight: float = 0.0,
        matching: Matching = NOTHING,
    ) -> None:
        """`num_ids`: how many ids the student's tokenizer has.

        `teacher_ids`: the teacher's id of each of the student's; without it they are the same. `matching`: which
        hidden states belong together, none without it. Raises `InputError` when a model has too few ids.
        """
        super().__init__()
        heads = plain_head(student), plain_head(teacher)
        self.vocabulary = min(
            len(heads[0].weight), len(heads[1].weight if teacher_ids is None else teacher_ids)
        )
        if self.vocabulary < num_ids:
            raise InputError(
                f"the tokenizer has {num_ids} ids, but teacher or student only {self.vocabulary}"
            )
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        # The divergence of close models is smaller than the rounding of bf16 logits.
        self.teacher_weight: Tensor
        self.teacher_bias: Tensor | None
        self.teacher_ids: Tensor | None
        ids = (
            None
            if teacher_ids is None
            else torch.tensor(teacher_ids[: self.vocabulary], device=teacher.device)
        )
        rows = slice(self.vocabulary) if ids is None else ids
        bias = heads[1].bias
        self.register_buffer("teacher_weight", heads[1].weight[rows].float(), persistent=False)
        self.register_buffer("teacher_bias", bias if bias is None else bias[rows].float(), persistent=False)
        self.register_buffer("teacher_ids", ids, persistent=False)
        self.divergence, self.temperature, self.label_weight = divergence, temperature, label_weight
        assert not hidden_weight or matching.student_layers
        self.hidden_weight = hidden_weight
        self.distance = HiddenDistance(matching)

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        targets_N = batch.targets
        teach = None
        with self.distance.of_teacher(self.teacher) as theirs:
            if self.label_weight < 1 or self.hidden_weight > 0:
                teach = self._teacher_logits(batch)

        def loss(logits_NV: Tensor, rows: slice) -> Tensor:
            loss_N = logits_NV.new_zeros(len(logits_NV))
            if self.label_weight > 0:
                loss_N = self.label_weight * functional.cross_entropy(
                    logits_NV, targets_N[rows], reduction="none"
                )
            if teach is not None and self.label_weight < 1:
                student_NV, teacher_NV = logits_NV[:, : self.vocabulary], teach(rows)
                T = self.temperature
                divergence_N = self.divergence(student_NV / T, teacher_NV.to(student_NV.dtype) / T)
                loss_N = loss_N + (1 - self.label_weight) * T**2 * divergence_N
            return loss_N

        with self.distance.of_student(self.student) as ours:
            hidden_ND = hidden_states(self.student, batch)
        total = tiled_loss(hidden_ND, self.student.get_output_embeddings(), loss)
        if self.hidden_weight > 0:
            total = total + self.hidden_weight * self.distance(batch, ours, theirs)
        return total, len(targets_N)

    def _teacher_logits(self, batch: Batch) -> Callable[[slice], Tensor]:
        """Run the teacher's layers now; return its logits of a slice of tokens when asked."""
        if self.teacher_ids is not None:
            batch = replace(batch, ids=self.teacher_ids[batch.ids])
        with torch.inference_mode():
            hidden_ND = hidden_states(self.teacher, batch)

        def logits(rows: slice) -> Tensor:
            with torch.no_grad():
                return project(hidden_ND[rows], self.teacher_weight, self.teacher_bias)

        return logits
