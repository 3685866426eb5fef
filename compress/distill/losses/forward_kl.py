"""Forward KL: the student pays wherever the teacher puts weight, so it learns to cover all of it."""

from typing import TYPE_CHECKING

from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """Nothing to set."""


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return ``KL(p ‖ q) = Σ_v p_v (log p_v − log q_v)`` in nats ``[N]`` and its gradient ``q − p`` ``[N, V]``.

    p is the teacher's softmax, q the student's. Hinton et al. 2015, arXiv:1503.02531, §2, with the teacher's entropy
    kept, so that equal models score 0.
    """
    from torch.linalg import vecdot

    log_ratio_N = vecdot(teacher.probs, teacher.logits - student.logits)
    return log_ratio_N - teacher.log_normalizer + student.log_normalizer, student.probs - teacher.probs
