"""Generalized Jensen–Shannon divergence: both models against their mixture, so it is bounded and never far off."""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """Where between the two models their mixture is."""

    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share β in the mixture. Towards 0 it behaves like forward KL, towards 1 like reverse KL."""


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return ``β KL(p ‖ m) + (1 − β) KL(q ‖ m)`` with ``m = β p + (1 − β) q``, in nats ``[N]``, and its gradient.

    p is the teacher's softmax, q the student's; the gradient ``[N, V]`` is
    ``(1 − β) q_v (log (q_v / m_v) − KL(q ‖ m))``. Agarwal et al. 2024 (GKD, arXiv:2306.13649, Eq. 1).
    """
    import torch
    from torch.linalg import vecdot

    mixed_NV = torch.lerp(student.probs, teacher.probs, config.beta)
    log_mixed_NV = mixed_NV.clamp_min_(torch.finfo(mixed_NV.dtype).tiny).log_()
    of_teacher_N = vecdot(teacher.probs, teacher.log_probs.sub_(log_mixed_NV))
    log_ratio_NV = student.log_probs.sub_(log_mixed_NV)
    of_student_N = vecdot(student.probs, log_ratio_NV)
    slope_NV = log_ratio_NV.sub_(of_student_N[:, None]).mul_(student.probs).mul_(1 - config.beta)
    return config.beta * of_teacher_N + (1 - config.beta) * of_student_N, slope_NV
