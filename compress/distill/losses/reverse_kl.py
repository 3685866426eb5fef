"""Reverse KL: the student pays for weight the teacher does not put there, so it keeps to what is likely."""

from typing import TYPE_CHECKING

from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """Nothing to set."""


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return ``KL(q ‖ p) = Σ_v q_v (log q_v − log p_v)`` in nats ``[N]`` and its gradient ``[N, V]``.

    p is the teacher's softmax, q the student's; the gradient is ``q_v (log q_v − log p_v − KL)``. Here exactly, over
    the vocabulary at the data's positions; Gu et al. 2024 (MiniLLM, arXiv:2306.08543, Eq. 1) take it over sequences
    the student samples.
    """
    from torch.linalg import vecdot

    log_ratio_NV = student.logits - teacher.logits
    log_ratio_NV -= (student.log_normalizer - teacher.log_normalizer)[:, None]
    loss_N = vecdot(student.probs, log_ratio_NV)
    return loss_N, log_ratio_NV.sub_(loss_N[:, None]).mul_(student.probs)
