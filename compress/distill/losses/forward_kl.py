"""Forward KL: the student pays wherever the teacher puts weight, so it learns to cover all of it."""

from torch import Tensor


def divergence(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Return ``KL(p ‖ q) = Σ_v p_v (log p_v − log q_v)`` in nats, ``[N]``.

    p is the teacher's softmax, q the student's. Logits ``[N, V]``, computed in their dtype (fp32 in
    training). Gradient in the student's logits: q − p.
    Hinton et al. 2015, arXiv:1503.02531, §2, with the teacher's entropy kept, so that equal models score 0.
    """
    log_p_NV, log_q_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
