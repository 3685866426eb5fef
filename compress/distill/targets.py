"""A teacher's distributions, sparse: its most likely ids, and an honest account of all the others.

Leaving the others out would teach the student that they never happen. So their mass is one outcome more, the bucket,
which the student's own rest is compared with. What is inside can be compared too, on a few ids sampled from it: for v
drawn from the teacher's rest p', and r = q'(v) / p'(v) with the student's rest q', the expectation of r − 1 − log r is
KL(p' ‖ q'), and so is its gradient's (Schulman 2020, joschu.net/blog/kl-approx.html, "k3"). The cross-entropy of
samples would do as well on average, but its noise stays when the student is close to its teacher; this one's vanishes.

    KL(p ‖ q) = Σ p_k log(p_k / q_k) + t log(t / (1 − Σ q_k)) + t · E_v[r − 1 − log r]

Shapes: N tokens, V vocabulary, K ids of a target (the likely ones, then S that are sampled).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
"""Ids whose masses are summed first while sampling."""


@dataclass(frozen=True)
class Targets:
    """Distributions over the next token of N tokens, from a teacher's logits divided by a temperature."""

    ids_NK: Tensor  # noqa: N815
    """int64. A sampled id may be there several times; it is never one of the likely."""
    probs_NK: Tensor  # noqa: N815
    """The probability of each id, likely or sampled."""
    tail_N: Tensor  # noqa: N815
    """The mass of all but the likely ids."""
    entropy_N: Tensor  # noqa: N815
    """The entropy of the whole distribution in nats."""
    num_likely: int
    """How many of the ids are likely ones; the others are sampled."""

    def __len__(self) -> int:
        return len(self.ids_NK)

    @property
    def likeliest(self) -> Tensor:
        """The likeliest id of each token ``[N]``, the lowest of several."""
        place_N1 = self.probs_NK[:, : self.num_likely].argmax(-1, keepdim=True)
        return self.ids_NK.gather(-1, place_N1)[:, 0]

    def __getitem__(self, tokens: slice) -> "Targets":
        """Return the targets of some of the tokens."""
        return self._each(lambda tensor: tensor[tokens])

    def to(self, device: torch.device | str) -> "Targets":
        """Return the targets on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        return Targets(
            change(self.ids_NK),
            change(self.probs_NK),
            change(self.tail_N),
            change(self.entropy_N),
            self.num_likely,
        )


def joined(parts: Sequence[Targets]) -> Targets:
    """Return the targets of all parts, one after the other."""
    return Targets(
        ids_NK=torch.cat([part.ids_NK for part in parts]),
        probs_NK=torch.cat([part.probs_NK for part in parts]),
        tail_N=torch.cat([part.tail_N for part in parts]),
        entropy_N=torch.cat([part.entropy_N for part in parts]),
        num_likely=parts[0].num_likely,
    )


def sparse_targets(logits_NV: Tensor, top_k: int, places_N: Tensor, samples: int) -> Targets:
    """Return the `top_k` most likely ids of each distribution, ascending, and `samples` of the rest, ascending.

    Sampling is systematic: the rest's masses laid end to end are read at `samples` places of equal distance, the first
    of them the share `places_N`, uniform in [0, 1), of that distance from the start. An id is read p / distance times
    on average, and never more or less than by one: less noise than independent draws.
    """
    probs_NV = logits_NV.softmax(-1)
    ids_NK = logits_NV.topk(min(top_k, logits_NV.shape[-1]), sorted=False).indices.sort(-1).values
    top_NK = probs_NV.gather(-1, ids_NK)
    # The likeliest id has exp(logit) / Σ exp: the sum without another pass of exponentials.
    log_norm_N = logits_NV.gather(-1, ids_NK).amax(-1) - top_NK.amax(-1).log()
    # An impossible id (a logit of −inf) has no entropy, where 0 · −inf would be NaN.
    possible_NV = logits_NV.clamp_min(torch.finfo(logits_NV.dtype).min)
    entropy_N = log_norm_N - torch.linalg.vecdot(probs_NV, possible_NV)
    rest_NV = probs_NV.scatter_(-1, ids_NK, 0.0)
    tail_N, num_likely = rest_NV.sum(-1), ids_NK.shape[1]
    if samples:
        sampled_NS = _systematic(rest_NV, places_N, samples)
        ids_NK = torch.cat([ids_NK, sampled_NS], -1)
        top_NK = torch.cat([top_NK, rest_NV.gather(-1, sampled_NS)], -1)
    return Targets(ids_NK, top_NK, tail_N, entropy_N, num_likely)


def sparse_loss(logits_NV: Tensor, targets: Targets) -> Tensor:
    """Return the forward KL of each target to the student, ``[N]`` in nats, by dense formulas: slow, and a reference.

    The student's logits are over the teacher's ids and divided by the temperature already. Without samples it is the
    bucket's KL, at most the whole one; with them its expectation, and that of its gradient, is the whole one's.
    """
    num = targets.num_likely
    log_norm_N = logits_NV.logsumexp(-1)
    log_q_NK = logits_NV.gather(-1, targets.ids_NK) - log_norm_N[:, None]
    rest_NV = logits_NV.scatter(-1, targets.ids_NK[:, :num], -torch.inf)
    probs_NK, tail_N = targets.probs_NK[:, :num], targets.tail_N
    log_rest_N = torch.where(tail_N > 0, rest_NV.logsumexp(-1) - log_norm_N, 0.0)
    likely_N = (torch.xlogy(probs_NK, probs_NK) - probs_NK * log_q_NK[:, :num]).sum(-1)
    bucket_N = torch.xlogy(tail_N, tail_N) - tail_N * log_rest_N
    if targets.ids_NK.shape[1] == num:
        return likely_N + bucket_N
    sampled_NS = targets.probs_NK[:, num:]
    log_r_NS = (log_q_NK[:, num:] - log_rest_N[:, None]) - (sampled_NS.log() - tail_N.log()[:, None])
    # Where the likely ids are all there is, what was "sampled" is none of the rest.
    log_r_NS = torch.where(sampled_NS > 0, log_r_NS, 0.0)
    return likely_N + bucket_N + tail_N * (log_r_NS.expm1() - log_r_NS).mean(-1)


def running_sums(masses: Tensor) -> Tensor:
    """Return running sums over the last axis in fp64, the same bits every time.

    A GPU adds them up in any order, and a last bit decides which id is read: so a processor adds them. They are few
    beside the logits: a block's sum for 256 of these, and a block for each sample.
    """
    return masses.cpu().double().cumsum(-1).to(masses.device)


def _systematic(rest_NV: Tensor, places_N: Tensor, samples: int) -> Tensor:
    """Return ids ``[N, samples]``, ascending: first which block of ids, then which of the block.

    Running sums are fp64, because one over a large vocabulary in fp32 would swallow the small masses at its end; and of
    blocks, because those of all ids would take longer than all the rest.
    """
    blocks_NBb = functional.pad(rest_NV, (0, -rest_NV.shape[1] % BLOCK)).view(len(rest_NV), -1, BLOCK)
    ends_NB = running_sums(blocks_NBb.sum(-1))
    shares_NS = (places_N.double()[:, None] + torch.arange(samples, device=rest_NV.device)) / samples
    wanted_NS = shares_NS * ends_NB[:, -1:]
    block_NS = torch.searchsorted(ends_NB, wanted_NS, right=True).clamp_max(ends_NB.shape[1] - 1)
    begins_NS = functional.pad(ends_NB, (1, 0)).gather(-1, block_NS)
    inside_NSb = running_sums(blocks_NBb.gather(1, block_NS[..., None].expand(-1, -1, BLOCK)))
    # A place that rounding puts at the very end of a block belongs to its last mass.
    last_NS1 = inside_NSb[..., -1:] * (1 - 2**-40)
    place_NS = torch.searchsorted(
        inside_NSb, (wanted_NS - begins_NS)[..., None].minimum(last_NS1), right=True
    )
    return (block_NS * BLOCK + place_NS[..., 0]).clamp_max(rest_NV.shape[1] - 1)
