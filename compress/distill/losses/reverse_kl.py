"""Reverse KL: the student pays for weight the teacher does not put there, so it keeps to what is likely."""

from torch import Tensor


def divergence(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Return ``KL(q ‖ p) = Σ_v q_v (log q_v − log p_v)`` in nats, ``[N]``.

    p is the teacher's softmax, q the student's. Logits ``[N, V]``, computed in their dtype (fp32 in
    training). Here exactly, over the vocabulary at the data's positions; Gu et al. 2024 (MiniLLM,
    arXiv:2306.08543, Eq. 1) take it over sequences the student samples.
    """
    log_p_NV, log_q_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1)
