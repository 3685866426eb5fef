"""Learning from text: the next token's cross-entropy.

An objective is one module of backbone, head and loss, called with a batch and returning sums: so a batch
can be split anywhere, and a wrapper around the module sees the whole computation.
"""

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.train.head import hidden_states, plain_head, tiled_loss


class NextToken(nn.Module):
    """``−log p(ids[t] | ids[<t])``, summed."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        plain_head(student)
        self.student = student

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss in nats (fp32 scalar) and the number of tokens it is of."""
        targets_N = batch.targets

        def loss(logits_NV: Tensor, rows: slice) -> Tensor:
            return functional.cross_entropy(logits_NV, targets_N[rows], reduction="none")

        hidden_ND = hidden_states(self.student, batch)
        return tiled_loss(hidden_ND, self.student.get_output_embeddings(), loss), len(targets_N)
