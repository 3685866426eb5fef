"""Learning from a teacher that has been asked already: no second model runs.

Shapes: N tokens of a tile, V ids of the teacher.
"""

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.distill.signals import TeacherSignals
from compress.distill.targets import sparse_loss
from compress.errors import InputError
from compress.train.head import hidden_states, plain_head, tiled_loss


class CachedDistillation(nn.Module):
    """``(1 − w) · T² · KL(teacher ‖ student) + w · CE``, summed, with the teacher's part as it was cached."""

    def __init__(
        self, student: PreTrainedModel, signals: TeacherSignals, label_weight: float, num_ids: int
    ) -> None:
        """`num_ids`: how many ids the tokenizer has.

        Raises `InputError` for a student with fewer ids than the teacher, which the cached distributions are over, and
        for a teacher with fewer than the tokenizer.
        """
        super().__init__()
        num_own, self.vocabulary = len(plain_head(student).weight), signals.about.vocabulary
        if num_own < self.vocabulary:
            raise InputError(
                f"cache_teacher: the cached distributions are over the teacher's {self.vocabulary} ids, and the "
                f"student has {num_own}; leave out `cache_teacher`"
            )
        if self.vocabulary < num_ids:
            raise InputError(f"the tokenizer has {num_ids} ids, but the teacher only {self.vocabulary}")
        self.student = student
        self._signals, self._label_weight = signals, label_weight

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        assert batch.rows is not None, "cached signals are found by the numbers of rows"
        labels_N = batch.targets
        targets = self._signals.at(batch.rows.tolist()).to(batch.ids.device)
        assert len(targets) == len(labels_N), "signals of other rows, or with other marks"
        weight, temperature = self._label_weight, self._signals.about.temperature

        def loss(logits_NV: Tensor, rows: slice) -> Tensor:
            scaled_NV = logits_NV[:, : self.vocabulary] / temperature
            loss_N = (1 - weight) * temperature**2 * sparse_loss(scaled_NV, targets[rows])
            if weight > 0:
                loss_N = loss_N + weight * functional.cross_entropy(
                    logits_NV, labels_N[rows], reduction="none"
                )
            return loss_N

        hidden_ND = hidden_states(self.student, batch)
        return tiled_loss(hidden_ND, self.student.get_output_embeddings(), loss), len(labels_N)

    def held_out(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the text's cross-entropy: of text that is not learned from, the teacher was not asked."""
        labels_N = batch.targets

        def loss(logits_NV: Tensor, rows: slice) -> Tensor:
            return functional.cross_entropy(logits_NV, labels_N[rows], reduction="none")

        hidden_ND = hidden_states(self.student, batch)
        return {"loss": tiled_loss(hidden_ND, self.student.get_output_embeddings(), loss)}, len(labels_N)
