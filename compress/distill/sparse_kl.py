"""Forward KL from sparse targets, with its gradient by hand: no pass of exponentials, no second row of the vocabulary.

    likely u:  ∂/∂z_u = q_u − p_u
    others:    ∂/∂z_u = q_u (1 − t r̄ / q_rest) + Σ_{v = u} (t / S) (r_v − 1)

in the names of `compress.distill.targets`, with the mean r̄ of the samples' r, which is 1 where there are none.

Shapes: N tokens, V vocabulary, K likely ids, S sampled ids.
"""

import torch
from torch import Tensor

from compress.distill.targets import Targets
from compress.train.distribution import Distribution


def sparse_forward_kl(student: Distribution, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return `compress.distill.targets.sparse_loss` ``[N]`` and its gradient ``[N, V]``, written over ``probs``."""
    num = targets.num_likely
    ids_NK, probs_NK, tail_N = targets.ids_NK[:, :num], targets.probs_NK[:, :num], targets.tail_N
    log_q_N = student.logits.gather(-1, targets.ids_NK) - student.log_normalizer[:, None]
    slope_NV, q_NK = student.probs, student.probs.gather(-1, ids_NK)
    rest_N = slope_NV.scatter_(-1, ids_NK, 0.0).sum(-1).clamp_min(torch.finfo(slope_NV.dtype).tiny)
    loss_N = (torch.xlogy(probs_NK, probs_NK) - probs_NK * log_q_N[:, :num]).sum(-1)
    loss_N = loss_N + torch.xlogy(tail_N, tail_N) - tail_N * rest_N.log()
    weight_N = tail_N / rest_N
    if targets.ids_NK.shape[1] == num:
        slope_NV.mul_((1 - weight_N)[:, None])
    else:
        sampled_NS = targets.probs_NK[:, num:]
        log_r_NS = log_q_N[:, num:] - rest_N.log()[:, None] - (sampled_NS.log() - tail_N.log()[:, None])
        log_r_NS = torch.where(sampled_NS > 0, log_r_NS, 0.0)
        above_NS = log_r_NS.expm1()
        loss_N = loss_N + tail_N * (above_NS - log_r_NS).mean(-1)
        slope_NV.mul_((1 - weight_N * (1 + above_NS.mean(-1)))[:, None])
        share_NS = above_NS * (tail_N / above_NS.shape[1])[:, None]
        slope_NV.scatter_add_(-1, targets.ids_NK[:, num:], share_NS.to(slope_NV.dtype))
    return loss_N, slope_NV.scatter_(-1, ids_NK, (q_NK - probs_NK).to(slope_NV.dtype))
