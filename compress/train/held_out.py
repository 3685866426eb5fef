"""What an objective says of text that is not learned from."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compress.data.batch import Batch
from compress.train.batches import Rows
from compress.train.numerics import Numerics


@runtime_checkable
class TellsMore(Protocol):
    """An objective that tells more of held-out text than its loss."""

    def held_out(self, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        """Return figures summed over all targets, scalars, `loss` among them, and how many targets there are.

        Called without gradients. Usual names: `kl` (nats) and `same_top` (how many tokens both models choose alike).
        """


def held_out_means(objective: nn.Module, batches: list[Batch], numerics: Numerics) -> dict[str, float]:
    """Return the mean of every figure over all targets of the batches; nothing where none has a target."""
    sums: dict[str, float] = defaultdict(float)
    num_tokens = 0
    with torch.no_grad():
        for batch in batches:
            with numerics.autocast():
                figures, count = _figures(objective, batch.to(numerics.device))
            num_tokens += count
            for name, value in figures.items():
                sums[name] += float(value)
    return {name: value / num_tokens for name, value in sums.items()} if num_tokens else {}


def held_out_batches(rows: Rows, num_rows: int, size: int, attend_across_documents: bool) -> list[Batch]:
    """Return the first rows in batches of at most `size`, each text apart unless asked, as in training."""
    batch = rows.learning_batch(list(range(min(num_rows, rows.num_sequences))))
    return list((replace(batch, positions=None) if attend_across_documents else batch).split(size))


def _figures(objective: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
    if isinstance(objective, TellsMore):
        return objective.held_out(batch)
    loss, count = objective(batch)
    return {"loss": loss}, count
