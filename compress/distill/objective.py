"""Learning from a teacher while it runs: two forward passes, one tile of both models' logits at a time.

Shapes: B sequences, T positions, N tokens of a tile, V ids both models have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.distill.divergences import Divergence
from compress.distill.hidden import NOTHING, HiddenDistance, Matching
from compress.distill.kernel_trial import FEW, LossKernel, made_up
from compress.distill.offload import offload_layers
from compress.distill.rows import KernelJudge, has_kernel, kernel_name
from compress.errors import InputError
from compress.train.distribution import Distribution, cross_entropy
from compress.train.fused import GroupJudge, Judge, fused_loss
from compress.train.head import hidden_states, output_head, output_matrix
from compress.train.objective import Objective
from compress.train.projection import Projection, product_dtype

OFFLOAD = "offload"
"""The teacher's device where its layers are kept in host memory."""


@dataclass(frozen=True)
class Recipe:
    """What is learned: ``(1 − w) · T² · D(teacher at T ‖ student at T) + w · CE + h · H``."""

    divergence: Divergence
    temperature: float = 1.0
    label_weight: float = 0.0
    hidden_weight: float = 0.0

    def loss(
        self, student: Distribution, teacher: Distribution | None, targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of a tile but for H ``[N]``, and their gradients in the student's logits ``[N, V]``."""
        T = self.temperature
        if teacher is None:
            return cross_entropy(student, targets_N)
        return mixed_loss(
            student,
            targets_N,
            lambda tempered: self.divergence(tempered, teacher.at_temperature(T)),
            self.label_weight,
            T,
        )


def mixed_loss(
    student: Distribution,
    targets_N: Tensor,
    divergence: Callable[[Distribution], tuple[Tensor, Tensor]],
    label_weight: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return ``(1 − w) · T² · D + w · CE`` of a tile ``[N]``, and the gradients in the student's logits ``[N, V]``.

    `divergence`: D of the student at T, and its gradient in the logits divided by T. T² keeps the gradient's size
    independent of the temperature (Hinton et al. 2015, §2.1).
    """
    w, T = label_weight, temperature
    if w == 1:
        return cross_entropy(student, targets_N)
    loss_N, slope_NV = divergence(student.at_temperature(T))
    if w == 0 and T == 1:
        return loss_N, slope_NV
    loss_N, slope_NV = (1 - w) * T**2 * loss_N, slope_NV.mul_((1 - w) * T)
    if w > 0:
        label_N, label_NV = cross_entropy(student, targets_N)
        loss_N, slope_NV = loss_N + w * label_N, slope_NV.add_(label_NV, alpha=w)
    return loss_N, slope_NV


class Distillation(Objective):
    """A recipe's loss around a student and its teacher, summed over every token that is a target.

    Distributions are over the ids both models have: what only one of them has is padding of the tokenizer's ids, and
    left out. A student with a pruned vocabulary learns the teacher's distribution over its own tokens, normalized
    among them; the teacher reads the same tokens under its own ids. H compares hidden states
    (`compress.distill.hidden`).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        recipe: Recipe,
        num_ids: int,
        teacher_ids: Sequence[int] | None = None,
        matching: Matching = NOTHING,
        teacher_device: str | None = None,
        kernel: LossKernel | None = None,
    ) -> None:
        """`num_ids`: how many ids the student's tokenizer has.

        `teacher_ids`: the teacher's id of each of the student's; without it they are the same. `matching`: which
        hidden states belong together, none without it. `teacher_device`: where the teacher's layers run, beside the
        student without it; ``offload``: there, and kept in host memory. `kernel`: the choice between a kernel and
        tiles, kept nowhere without it. Raises `InputError` when a model has too few ids.
        """
        super().__init__(student)
        self._heads = output_head(student), output_head(teacher)
        num_own, num_theirs = (len(output_matrix(model)[0]) for model in (student, teacher))
        self.vocabulary = min(num_own, num_theirs if teacher_ids is None else len(teacher_ids))
        if self.vocabulary < num_ids:
            raise InputError(
                f"the tokenizer has {num_ids} ids, but teacher or student only {self.vocabulary}"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self._teacher_device = teacher_device
        self._offloaded_to: str | None = None
        self.recipe = recipe
        self._kernel = kernel or LossKernel()
        self._teacher_ids: Tensor | None
        ids = None if teacher_ids is None else torch.tensor(teacher_ids[: self.vocabulary])
        self.register_buffer("_teacher_ids", ids, persistent=False)
        self._teacher_output: dict[torch.dtype, Projection] = {}
        """The teacher's output layer at those ids, without hidden states, by what it is multiplied in."""
        assert not recipe.hidden_weight or matching.student_layers
        self.distance = HiddenDistance(matching)

    def place(self, device: str) -> None:
        """Move the objective to the device that training runs on, the teacher to its own."""
        for child in self.children():
            if child is not self.teacher or self._teacher_device != OFFLOAD:
                child.to(self._teacher_device or device if child is self.teacher else device)
        if self._teacher_device == OFFLOAD and self._offloaded_to != device:
            offload_layers(self.teacher, device)
            self._offloaded_to = device
        if self._teacher_ids is not None:
            self._teacher_ids = self._teacher_ids.to(device)

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        targets_N, recipe = batch.targets, self.recipe
        teacher = None
        with self.distance.of_teacher(self.teacher) as theirs:
            if recipe.label_weight < 1 or recipe.hidden_weight > 0:
                teacher = self._teacher_of(batch)

        def judge(
            student: Distribution, teacher: Distribution | None, tokens: slice
        ) -> tuple[Tensor, Tensor]:
            return recipe.loss(student, teacher, targets_N[tokens])

        with self.distance.of_student(self.student) as ours:
            total = self._judged(batch, teacher, judge, learns=True)
        if recipe.hidden_weight > 0:
            total = total + recipe.hidden_weight * self.distance(batch, ours, theirs)
        return total, len(targets_N)

    @torch.no_grad()
    def held_out(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return sums over the targets, without gradients, and how many there are.

        ``loss``: the recipe's, but for H; ``kl``: forward KL; ``label_loss``: the text's cross-entropy, all in nats;
        ``teacher_entropy`` and ``student_entropy``; ``same_top``: how many tokens both models choose alike.
        """
        targets_N, recipe = batch.targets, self.recipe
        sums: dict[str, Tensor] = {}

        def judge(
            student: Distribution, teacher: Distribution | None, tokens: slice
        ) -> tuple[Tensor, Tensor]:
            assert teacher is not None
            kl_N = torch.linalg.vecdot(teacher.probs, teacher.log_probs.sub_(student.log_probs))
            found = {
                "kl": kl_N,
                "teacher_entropy": teacher.entropy(),
                "student_entropy": student.entropy(),
                "same_top": student.logits.argmax(-1) == teacher.logits.argmax(-1),
            }
            loss_N, slope_NV = recipe.loss(student, teacher, targets_N[tokens])
            found["label_loss"] = student.log_normalizer - student.logits.gather(
                -1, targets_N[tokens, None]
            ).squeeze(-1)
            for name, value_N in found.items():
                sums[name] = sums.get(name, 0) + value_N.sum()
            return loss_N, slope_NV

        loss = self._judged(batch, self._teacher_of(batch), judge)
        return {"loss": loss, **sums}, len(targets_N)

    def _judged(
        self,
        batch: Batch,
        teacher: Projection | None,
        judge: Callable[[Distribution, Distribution | None, slice], tuple[Tensor, Tensor]],
        learns: bool = False,
    ) -> Tensor:
        """Return the summed losses of the student's tokens beside the teacher's.

        `learns`: the judge is the recipe, and where a kernel computes it, that does.
        """
        targets_N, recipe = batch.targets, self.recipe

        def criterion(student: Projection, group: slice) -> Judge | GroupJudge:
            if teacher is None:
                return lambda found, tokens: judge(found, None, tokens)
            product_gV = teacher.product(group)
            if learns and self._has_kernel(student, teacher):
                weights = recipe.temperature, recipe.label_weight
                return KernelJudge(student, teacher, product_gV, group, targets_N[group], *weights)

            def both(found: Distribution, tokens: slice) -> tuple[Tensor, Tensor]:
                theirs_nV = product_gV[tokens.start - group.start : tokens.stop - group.start]
                return judge(found, teacher.distribution(theirs_nV, tokens), tokens)

            return both

        head = self._heads[0]
        hidden_ND = head.scaled(hidden_states(self.student, batch))
        weight_VD, bias_V = output_matrix(self.student, self.vocabulary)
        return fused_loss(hidden_ND, weight_VD, bias_V, criterion, head.softcap)

    def _has_kernel(self, student: Projection, teacher: Projection) -> bool:
        """Return whether a kernel computes the recipe's loss, which is tried the first time."""
        recipe = self.recipe
        if recipe.label_weight == 1 or not has_kernel(recipe.divergence, student, teacher):
            return False

        def trial() -> tuple[GroupJudge, Judge, Projection]:
            ours, theirs, group = made_up(student, seed=0), made_up(teacher, seed=1), slice(0, FEW)
            targets_g = torch.arange(FEW, device=ours.hidden.device) % len(ours.weight)
            weights = recipe.temperature, recipe.label_weight

            def tiles(found: Distribution, tokens: slice) -> tuple[Tensor, Tensor]:
                return recipe.loss(found, theirs.distribution(theirs.product(tokens), tokens), targets_g)

            return KernelJudge(ours, theirs, theirs.product(group), group, targets_g, *weights), tiles, ours

        return self._kernel.works(kernel_name(student), trial)

    @torch.no_grad()
    def _teacher_of(self, batch: Batch) -> Projection:
        """Run the teacher's layers; return what makes logits of what they say."""
        if self._teacher_ids is not None:
            batch = batch.with_ids(self._teacher_ids[batch.ids])
        head, device = self._heads[1], batch.ids.device
        if self._teacher_device not in (None, OFFLOAD):
            batch = batch.to(self._teacher_device)
        # The logits are made where the student's are, of what is small: the teacher's last hidden states.
        hidden_ND = head.scaled(hidden_states(self.teacher, batch)).to(device)
        weight_VD, bias_V = output_matrix(self.teacher)
        dtype = product_dtype(device, weight_VD.dtype)
        if dtype not in self._teacher_output:
            ids = slice(self.vocabulary) if self._teacher_ids is None else self._teacher_ids
            bias_V = None if bias_V is None else bias_V[ids].to(device)
            weight_VD = weight_VD[ids].to(device)
            self._teacher_output[dtype] = Projection.of(hidden_ND[:0], weight_VD, bias_V, head.softcap)
        return replace(self._teacher_output[dtype], hidden=hidden_ND.to(dtype))
