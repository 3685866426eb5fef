"""Skew KL: forward KL to a student that has been given some of the teacher, so no probability makes it explode."""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """How much of the teacher the student is given."""

    alpha: float = Field(default=0.1, ge=0, lt=1)
    """The teacher's share in what it is compared with; 0 is forward KL."""


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return ``KL(p ‖ α p + (1 − α) q)`` in nats ``[N]`` and its gradient ``[N, V]``.

    p is the teacher's softmax, q the student's, m the mixture; with ``g = −(1 − α) p / m`` the gradient is
    ``q_v (g_v − Σ q g)``. Ko et al. 2024 (DistiLLM, arXiv:2402.03898, Eq. 4).
    """
    import torch
    from torch.linalg import vecdot

    mixed_NV = torch.lerp(student.probs, teacher.probs, config.alpha)
    mixed_NV.clamp_min_(torch.finfo(mixed_NV.dtype).tiny)
    loss_N = vecdot(teacher.probs, teacher.log_probs.sub_(mixed_NV.log()))
    g_NV = (teacher.probs / mixed_NV).mul_(config.alpha - 1)
    return loss_N, g_NV.sub_(vecdot(student.probs, g_NV)[:, None]).mul_(student.probs)
