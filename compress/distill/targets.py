"""A teacher's distributions, sparse: its most likely ids, and an honest account of all the others.

Leaving the others out would teach the student that they never happen. Either their mass is one outcome more, which the
student's own rest is compared with (``bucket``), or some of them stand for all (``sampled``), each with the weight that
makes the expected target, and so the expected gradient of forward KL, that of the whole distribution.

Shapes: N tokens, V vocabulary, K ids of a target (the likely ones, then those that stand for the rest).
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

Tail = Literal["bucket", "sampled"]


@dataclass(frozen=True)
class Targets:
    """Distributions over the next token of N tokens, from a teacher's logits divided by a temperature."""

    ids_NK: Tensor  # noqa: N815
    """int64. Ids that stand for the rest may be there several times: their masses add up."""
    probs_NK: Tensor  # noqa: N815
    """The mass of each id: a likely one's probability, a sampled one's share of the rest."""
    tail_N: Tensor  # noqa: N815
    """The mass of all ids that are not there, to be compared as one; zero where sampled ids stand for them."""
    entropy_N: Tensor  # noqa: N815
    """The entropy of the whole distribution in nats."""
    has_bucket: bool
    """Whether `tail_N` is a part of the target."""

    def __len__(self) -> int:
        return len(self.ids_NK)

    def __getitem__(self, tokens: slice) -> "Targets":
        """Return the targets of some of the tokens."""
        return self._each(lambda tensor: tensor[tokens])

    def to(self, device: torch.device | str) -> "Targets":
        """Return the targets on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Any) -> "Targets":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Targets(**{n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()})


def sparse_targets(logits_NV: Tensor, top_k: int, tail: Tail, places_N: Tensor, samples: int) -> Targets:
    """Return the `top_k` most likely ids of each distribution, ascending, and the rest as `tail` says.

    Sampling is systematic: the rest's masses laid end to end are read at `samples` places of equal distance, the first
    of them the share `places_N`, uniform in [0, 1), of that distance from the start. An id is read p / distance times
    on average, and never more or less than by one: less noise than independent draws.
    """
    log_probs_NV = logits_NV.log_softmax(-1)
    probs_NV = log_probs_NV.exp()
    # An impossible id (a logit of −inf) has no entropy, where 0 · −inf would be NaN.
    entropy_N = -(probs_NV * log_probs_NV.clamp_min(torch.finfo(log_probs_NV.dtype).min)).sum(-1)
    ids_NK = log_probs_NV.topk(min(top_k, log_probs_NV.shape[-1]), sorted=False).indices.sort(-1).values
    top_NK = probs_NV.gather(-1, ids_NK)
    rest_NV = probs_NV.scatter_(-1, ids_NK, 0.0)
    if tail == "bucket":
        return Targets(ids_NK, top_NK, rest_NV.sum(-1), entropy_N, has_bucket=True)
    sampled_NS, tail_N = _systematic(rest_NV, places_N, samples)
    shares_NS = (tail_N / samples)[:, None].expand_as(sampled_NS).to(top_NK.dtype)
    return Targets(
        ids_NK=torch.cat([ids_NK, sampled_NS], -1),
        probs_NK=torch.cat([top_NK, shares_NS], -1),
        tail_N=torch.zeros_like(entropy_N),
        entropy_N=entropy_N,
        has_bucket=False,
    )


def sparse_loss(logits_NV: Tensor, targets: Targets) -> Tensor:
    """Return the forward KL of each target to the student, ``[N]`` in nats, by dense formulas: slow, and a reference.

    The student's logits are over the teacher's ids and divided by the temperature already. With a bucket it is
    Σ p_k (log p_k − log q_k) + t (log t − log(1 − Σ q_k)), at most the whole KL; with samples Σ w_k (−log q_k) − H(p),
    whose expectation is the whole KL.
    """
    log_q_NK = logits_NV.log_softmax(-1).gather(-1, targets.ids_NK)
    probs_NK, tail_N = targets.probs_NK, targets.tail_N
    if not targets.has_bucket:
        return -(probs_NK * log_q_NK).sum(-1) - targets.entropy_N
    rest_NV = logits_NV.scatter(-1, targets.ids_NK, -torch.inf)
    log_rest_N = rest_NV.logsumexp(-1) - logits_NV.logsumexp(-1)
    likely_N = (torch.xlogy(probs_NK, probs_NK) - probs_NK * log_q_NK).sum(-1)
    unlikely_N = torch.xlogy(tail_N, tail_N) - tail_N * torch.where(tail_N > 0, log_rest_N, 0.0)
    return likely_N + unlikely_N


def _systematic(rest_NV: Tensor, places_N: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Return ids ``[N, samples]``, ascending, and the mass of all ids ``[N]``."""
    # In fp64: a sum over a large vocabulary in fp32 would swallow the small masses at its end.
    sums_NV = rest_NV.double().cumsum(-1)
    tail_N = sums_NV[:, -1].contiguous()
    shares_NS = (places_N.double()[:, None] + torch.arange(samples, device=rest_NV.device)) / samples
    wanted_NS = shares_NS * tail_N[:, None]
    ids_NS = torch.searchsorted(sums_NV, wanted_NS, right=True)
    return ids_NS.clamp_max(rest_NV.shape[-1] - 1), tail_N
