"""Learning from text: the next token's cross-entropy.

An objective is one module of backbone, head and loss, called with a batch and returning sums: so a batch
can be split anywhere, and a wrapper around the module sees the whole computation.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.train.distribution import Distribution, cross_entropy
from compress.train.fused import Judge, fused_loss
from compress.train.head import hidden_states, output_head, output_matrix
from compress.train.projection import Projection

Value = TypeVar("Value")


class Objective(nn.Module):
    """What all objectives have: a student."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        self.student = student

    def place(self, device: str) -> None:
        """Move the objective to the device that training runs on."""
        self.to(device)

    def whole(self, work: Callable[[PreTrainedModel], Value]) -> Value:
        """Return what `work` makes of the student, which a team of processes gathers for it as for `forward`."""
        return work(self.student)


class NextToken(Objective):
    """``−log p(ids[t] | ids[<t])``, summed."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__(student)
        self._head = output_head(student)

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        targets_N = batch.targets

        def judge(student: Distribution, tokens: slice) -> tuple[Tensor, Tensor]:
            return cross_entropy(student, targets_N[tokens])

        def criterion(_student: Projection, _group: slice) -> Judge:
            return judge

        hidden_ND = self._head.scaled(hidden_states(self.student, batch))
        return fused_loss(hidden_ND, *output_matrix(self.student), criterion, self._head.softcap), len(
            targets_N
        )
