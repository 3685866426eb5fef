"""Total variation: how much probability would have to be moved; every misplaced bit of it counts the same."""

from typing import TYPE_CHECKING

from compress.plugins import StepConfig

if TYPE_CHECKING:
    from torch import Tensor

    from compress.train.distribution import Distribution


class Config(StepConfig):
    """Nothing to set."""


def divergence(student: "Distribution", teacher: "Distribution", config: Config) -> "tuple[Tensor, Tensor]":
    """Return ``½ Σ_v |p_v − q_v|``, within [0, 1], ``[N]``, and its gradient ``[N, V]``.

    p is the teacher's softmax, q the student's; with ``g = ½ sign(q − p)`` the gradient is ``q_v (g_v − Σ q g)``.
    Wen et al. 2023 (f-distill, arXiv:2307.15190, §3.2).
    """
    from torch.linalg import vecdot

    difference_NV = student.probs - teacher.probs
    loss_N = difference_NV.abs().sum(-1) / 2
    g_NV = difference_NV.sign_().div_(2)
    return loss_N, g_NV.sub_(vecdot(student.probs, g_NV)[:, None]).mul_(student.probs)
