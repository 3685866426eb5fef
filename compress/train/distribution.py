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
    def of(cls, logits_NV: Tensor, ids_N: Tensor | None = None) -> "Distribution":
        """Return the distribution of logits. `ids_N`: one of each token's likely ids, where such is known."""
        probs_NV = torch.softmax(logits_NV, -1)
        # A likely id has exp(logit) / Σ exp: the sum without another pass of exponentials.
        if ids_N is None:
            log_norm_N = logits_NV.amax(-1) - probs_NV.amax(-1).log()
        else:
            of_id_N1 = (each.gather(-1, ids_N[:, None]) for each in (logits_NV, probs_NV))
            logit_N1, prob_N1 = of_id_N1
            log_norm_N = (logit_N1 - prob_N1.log())[:, 0]
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


def cross_entropy(student: Distribution, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``−log q(target)`` in nats ``[N]`` and its gradient in the logits ``[N, V]``, written over ``probs``."""
    loss_N = student.log_normalizer - student.logits.gather(-1, targets_N[:, None])[:, 0]
    slope_NV = student.probs
    slope_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
    return loss_N, slope_NV
