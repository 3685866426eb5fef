"""What a model expects next, as losses read it: logits, their softmax, and what it was divided by.

Shapes: N tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Distribution:
    """Distributions over the vocabulary. Whoever is given one may overwrite its tensors."""

    logits: Tensor
    """``[N, V]``, fp32 or fp64."""
    probs: Tensor
    """Their softmax ``[N, V]``."""
    log_normalizer: Tensor
    """``log Σ exp(logits)``, ``[N]``: log-probabilities are the logits less this."""

    @classmethod
    def of(cls, logits_NV: Tensor) -> "Distribution":
        """Return the distribution of logits."""
        probs_NV = torch.softmax(logits_NV, -1)
        # The likeliest id has exp(top) / Σ exp: the sum without another pass of exponentials.
        log_norm_N = logits_NV.amax(-1) - probs_NV.amax(-1).log()
        return cls(logits_NV, probs_NV, log_norm_N)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities ``[N, V]``, a new tensor."""
        return self.logits - self.log_normalizer[:, None]

    def at_temperature(self, temperature: float) -> "Distribution":
        """Return the distribution of the logits divided by a temperature."""
        return self if temperature == 1 else Distribution.of(self.logits / temperature)

    def entropy(self) -> Tensor:
        """Return the entropies in nats, ``[N]``."""
        mean_logit_N: Tensor = torch.linalg.vecdot(self.probs, self.logits)
        return self.log_normalizer - mean_logit_N

    def correct(self, tokens_M: Tensor, ids_M: Tensor, logits_M: Tensor) -> None:
        """Set single logits, and make probabilities and normalizers what they are with them.

        No id of a token may be there twice.
        """
        before_M = self.probs[tokens_M, ids_M]
        after_M = before_M * (logits_M - self.logits[tokens_M, ids_M]).exp()
        self.logits[tokens_M, ids_M] = logits_M
        self.probs[tokens_M, ids_M] = after_M
        total_N = torch.ones_like(self.log_normalizer).index_add_(0, tokens_M, after_M - before_M)
        self.probs /= total_N[:, None]
        self.log_normalizer = self.log_normalizer + total_N.log()


def cross_entropy(student: Distribution, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``−log q(target)`` in nats ``[N]`` and its gradient in the logits ``[N, V]``, written over ``probs``."""
    loss_N = student.log_normalizer - student.logits.gather(-1, targets_N[:, None])[:, 0]
    slope_NV = student.probs
    slope_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
    return loss_N, slope_NV
