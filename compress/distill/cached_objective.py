"""Learning from a teacher that has been asked already: no second model runs.

Shapes: N tokens of a tile, V ids of the teacher.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.distill.objective import mixed_loss
from compress.distill.signals import TeacherSignals
from compress.distill.sparse_kl import sparse_forward_kl
from compress.distill.targets import Targets
from compress.errors import InputError
from compress.train.distribution import Distribution, cross_entropy
from compress.train.fused import Judge, fused_loss
from compress.train.head import hidden_states, output_head, output_matrix
from compress.train.objective import Objective


class CachedDistillation(Objective):
    """``(1 − w) · T² · KL(teacher ‖ student) + w · CE``, summed, with the teacher's part as it was cached."""

    def __init__(
        self, student: PreTrainedModel, signals: TeacherSignals, label_weight: float, num_ids: int
    ) -> None:
        """`num_ids`: how many ids the tokenizer has.

        Raises `InputError` for a student with fewer ids than the teacher, which the cached distributions are over, and
        for a teacher with fewer than the tokenizer.
        """
        super().__init__(student)
        self._head = output_head(student)
        num_own, self.vocabulary = len(output_matrix(student)[0]), signals.about.vocabulary
        if num_own < self.vocabulary:
            raise InputError(
                f"cache_teacher: the cached distributions are over the teacher's {self.vocabulary} ids, and the "
                f"student has {num_own}; leave out `cache_teacher`"
            )
        if self.vocabulary < num_ids:
            raise InputError(f"the tokenizer has {num_ids} ids, but the teacher only {self.vocabulary}")
        self._signals, self._label_weight = signals, label_weight

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        assert batch.rows is not None, "cached signals are found by the numbers of rows"
        labels_N = batch.targets
        targets = self._signals.at(batch.rows.tolist()).to(batch.ids.device)
        assert len(targets) == len(labels_N), "signals of other rows, or with other marks"
        return self._judged(
            batch, lambda student, tokens: self._loss(student, targets[tokens], labels_N[tokens])
        )

    @torch.no_grad()
    def held_out(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the text's cross-entropy: of text that is not learned from, the teacher was not asked."""
        labels_N = batch.targets
        loss, count = self._judged(batch, lambda student, tokens: cross_entropy(student, labels_N[tokens]))
        return {"loss": loss}, count

    def _loss(self, student: Distribution, targets: Targets, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of a tile ``[N]`` and their gradients in the student's logits ``[N, V]``."""
        w, T = self._label_weight, self._signals.about.temperature

        def divergence(tempered: Distribution) -> tuple[Tensor, Tensor]:
            if tempered is student and w > 0:  # the labels' gradient needs what the teacher's is written over
                tempered = replace(student, probs=student.probs.clone())
            return sparse_forward_kl(tempered, targets)

        return mixed_loss(student, labels_N, divergence, w, T)

    def _judged(self, batch: Batch, judge: Judge) -> tuple[Tensor, int]:
        """Return the summed losses of the batch's targets, and how many there are."""
        hidden_ND = self._head.scaled(hidden_states(self.student, batch))
        weight_VD, bias_V = output_matrix(self.student, self.vocabulary)
        return fused_loss(hidden_ND, weight_VD, bias_V, lambda group: judge, self._head.softcap), len(
            hidden_ND
        )
