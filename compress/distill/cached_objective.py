"""Learning from a teacher that has been asked already: no second model runs.

Shapes: N tokens of a tile, V ids of the teacher.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.distill.kernel_trial import FEW, LossKernel, made_up
from compress.distill.objective import mixed_loss
from compress.distill.rows import SparseJudge, has_compiled_rows, kernel_name
from compress.distill.signals import TeacherSignals
from compress.distill.sparse_kl import sparse_forward_kl
from compress.distill.targets import Targets
from compress.errors import InputError
from compress.train.distribution import Distribution
from compress.train.fused import Criterion, GroupJudge, Judge, fused_loss
from compress.train.head import hidden_states, output_head, output_matrix
from compress.train.objective import Objective
from compress.train.projection import Projection


class CachedDistillation(Objective):
    """``(1 − w) · T² · KL(teacher ‖ student) + w · CE``, summed, with the teacher's part as it was cached."""

    def __init__(
        self,
        student: PreTrainedModel,
        signals: TeacherSignals,
        label_weight: float,
        num_ids: int,
        held_out: TeacherSignals | None = None,
        kernel: LossKernel | None = None,
    ) -> None:
        """`num_ids`: how many ids the tokenizer has. `held_out`: signals of text that is not learned from.

        `kernel`: the choice between compiled rows and tiles, kept nowhere without it.

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
        assert held_out is None or _says_what(held_out) == _says_what(signals)
        self._signals, self._held_out, self._label_weight = signals, held_out, label_weight
        self._kernel = kernel or LossKernel()

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        labels_N, targets = batch.targets, _targets(self._signals, batch)
        w, T = self._label_weight, self._signals.about.temperature

        def judge(student: Distribution, tokens: slice) -> tuple[Tensor, Tensor]:
            return self._loss(student, targets[tokens], labels_N[tokens])

        def trial(student: Projection) -> tuple[GroupJudge, Judge, Projection]:
            group = slice(0, min(FEW, len(labels_N)))
            ours, theirs, labels_g = made_up(student, 0, group.stop), targets[group], labels_N[group]

            def tiles(found: Distribution, _tokens: slice) -> tuple[Tensor, Tensor]:
                return self._loss(found, theirs, labels_g)

            return SparseJudge(ours, group, theirs, labels_g, T, w), tiles, ours

        def criterion(student: Projection, group: slice) -> Judge | GroupJudge:
            if has_compiled_rows(student) and self._kernel.works(
                kernel_name(student), partial(trial, student)
            ):
                return SparseJudge(student, group, targets[group], labels_N[group], T, w)
            return judge

        return self._judged(batch, criterion)

    @torch.no_grad()
    def held_out(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return sums over the targets, without gradients, and how many there are.

        They are those of `Distillation.held_out`, with ``loss`` and ``kl`` as far as the cache knows them: right on
        average over its samples. ``kl`` and ``teacher_entropy`` are of temperature 1, and left out where the teacher
        was asked at another.
        """
        assert self._held_out is not None, "the teacher was not asked about held-out text"
        labels_N, targets = batch.targets, _targets(self._held_out, batch)
        w, T = self._label_weight, self._held_out.about.temperature
        sums: dict[str, Tensor] = {}

        def judge(student: Distribution, tokens: slice) -> tuple[Tensor, Tensor]:
            theirs, labels_n = targets[tokens], labels_N[tokens]
            found = {
                "student_entropy": student.entropy(),
                "same_top": student.logits.argmax(-1) == theirs.likeliest,
                "label_loss": student.log_normalizer - student.logits.gather(-1, labels_n[:, None])[:, 0],
            }
            divergence = self._kl(student, student.at_temperature(T), theirs)
            if T == 1:
                found |= {"kl": divergence[0], "teacher_entropy": theirs.entropy_N}
            for name, value_n in found.items():
                sums[name] = sums.get(name, 0) + value_n.sum()
            return mixed_loss(student, labels_n, lambda _: divergence, w, T)

        loss, count = self._judged(batch, lambda _student, _group: judge)
        return {"loss": loss, **sums}, count

    def _loss(self, student: Distribution, targets: Targets, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of a tile ``[N]`` and their gradients in the student's logits ``[N, V]``."""
        w, T = self._label_weight, self._signals.about.temperature
        return mixed_loss(student, labels_N, lambda tempered: self._kl(student, tempered, targets), w, T)

    def _kl(self, student: Distribution, tempered: Distribution, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return forward KL to the student at the cache's temperature, and its gradient there."""
        if tempered is student and self._label_weight > 0:
            # The labels' gradient needs what the teacher's is written over.
            tempered = replace(student, probs=student.probs.clone())
        return sparse_forward_kl(tempered, targets)

    def _judged(self, batch: Batch, criterion: Criterion) -> tuple[Tensor, int]:
        """Return the summed losses of the batch's targets, and how many there are."""
        hidden_ND = self._head.scaled(hidden_states(self.student, batch))
        weight_VD, bias_V = output_matrix(self.student, self.vocabulary)
        return fused_loss(hidden_ND, weight_VD, bias_V, criterion, self._head.softcap), len(hidden_ND)


def _targets(signals: TeacherSignals, batch: Batch) -> Targets:
    """Return what the teacher said of a batch, beside `Batch.targets`."""
    assert batch.rows is not None, "cached signals are found by the numbers of rows"
    targets, num = signals.at(batch.rows.tolist()).to(batch.ids.device), len(batch.targets)
    # A process of a team that has no row left reads one of which nothing is learned.
    assert num in (len(targets), 0), "signals of other rows, or with other marks"
    return targets[:num]


def _says_what(signals: TeacherSignals) -> tuple[int, float]:
    return signals.about.vocabulary, signals.about.temperature
