"""How a target is stored: sorted ids in about 14 bits each, probabilities in 8, all targets in equally many bytes.

A probability is written as how far its logarithm is below the largest one's, d, on a scale that is finer where
probabilities are larger: the code is c = round(255 · √(d / R)), where R is the target's own largest d, and 0 only for
the largest, which so stays the only one. So |d̂ − d| ≤ √(d R) / 255 + R / 255². Likely and sampled ids have an R each.
The masses of the likely are scaled to what the exactly stored tail leaves for them; the largest of the sampled is
stored as a share of the tail.

Shapes: N tokens, K likely ids, S sampled ids.
"""

from dataclasses import dataclass

import numpy as np
import torch

from compress.distill.sorted_ids import Array, SortedIds
from compress.distill.targets import Targets

STEPS = 255
FARTHEST = 40.0
"""Nats below the largest probability at which all are alike: e⁻⁴⁰ is nothing in fp32."""


@dataclass(frozen=True)
class Coding:
    """The layout of a target's bytes.

    Codes, ids and R (fp16) of the likely; tail and entropy (fp32); codes, ids, R and the logarithm of the largest share
    (fp16) of the sampled, if there are any.
    """

    vocabulary: int
    top_k: int
    """Likely ids of a target; at most the vocabulary."""
    samples: int
    """Sampled ids of a target, or 0."""

    @property
    def num_bytes(self) -> int:
        """Bytes of a target."""
        return sum(self._widths)

    def encode(self, targets: Targets) -> Array:
        """Return the bytes of each target: uint8 ``[N, num_bytes]``."""
        assert targets.num_likely == self.top_k
        ids_NK, probs_NK = targets.ids_NK.cpu().numpy(), targets.probs_NK.float().cpu().numpy()
        tail_N, entropy_N = (values.float().cpu().numpy() for values in (targets.tail_N, targets.entropy_N))
        codes, range_N = _codes(probs_NK[:, : self.top_k])
        parts = [codes, self._likely.encode(ids_NK[:, : self.top_k]), _bytes(range_N, "<f2")]
        parts += [_bytes(tail_N, "<f4"), _bytes(entropy_N, "<f4")]
        if self.samples:
            sampled_NS = probs_NK[:, self.top_k :]
            codes, range_N = _codes(sampled_NS)
            parts += [codes, self._sampled.encode(ids_NK[:, self.top_k :]), _bytes(range_N, "<f2")]
            parts.append(_bytes(_log_share(sampled_NS.max(axis=1), tail_N), "<f2"))
        return np.concatenate(parts, axis=1)

    def decode(self, rows: Array) -> Targets:
        """Return the targets of rows of bytes, masses and entropies in fp32."""
        parts = np.split(rows, np.cumsum(self._widths)[:-1], axis=1)
        codes, ids, range_, tail, entropy = parts[:5]
        tail_N, entropy_N = (_numbers(part, "<f4") for part in (tail, entropy))
        masses_NK = _masses(codes, range_)
        probs_NK = masses_NK * ((np.float32(1) - tail_N) / masses_NK.sum(axis=1))[:, None]
        ids_NK = self._likely.decode(ids)
        if self.samples:
            codes, ids, range_, share = parts[5:]
            largest_N = tail_N * np.exp(_numbers(share, "<f2").astype(np.float32))
            probs_NK = np.concatenate([probs_NK, _masses(codes, range_) * largest_N[:, None]], axis=1)
            ids_NK = np.concatenate([ids_NK, self._sampled.decode(ids)], axis=1)
        return Targets(
            ids_NK=torch.from_numpy(ids_NK),
            probs_NK=torch.from_numpy(probs_NK),
            tail_N=torch.from_numpy(tail_N),
            entropy_N=torch.from_numpy(entropy_N),
            num_likely=self.top_k,
        )

    @property
    def _widths(self) -> list[int]:
        likely = [self.top_k, self._likely.num_bytes, 2, 4, 4]
        return [*likely, self.samples, self._sampled.num_bytes, 2, 2] if self.samples else likely

    @property
    def _likely(self) -> SortedIds:
        return SortedIds(self.top_k, self.vocabulary)

    @property
    def _sampled(self) -> SortedIds:
        return SortedIds(self.samples, self.vocabulary)


def _codes(probs_NK: Array) -> tuple[Array, Array]:
    """Return the codes of probabilities, uint8 ``[N, K]``, and R as it is stored, ``[N]``."""
    logs_NK = np.log(np.maximum(probs_NK, np.finfo(np.float32).tiny))
    below_NK = np.minimum(logs_NK.max(axis=1, keepdims=True) - logs_NK, FARTHEST)
    range_N = below_NK.max(axis=1).astype("<f2")
    safe_N1 = np.maximum(range_N.astype(np.float32), np.finfo(np.float32).tiny)[:, None]
    # R in fp16 may be a little less than the largest d.
    codes = np.minimum(np.rint(STEPS * np.sqrt(below_NK / safe_N1)), STEPS)
    codes = np.where(below_NK > 0, np.maximum(codes, 1), codes)
    return codes.astype(np.uint8), range_N


def _masses(codes: Array, ranges: Array) -> Array:
    """Return masses as shares of the largest, fp32 ``[N, K]``."""
    range_N1 = _numbers(ranges, "<f2").astype(np.float32)[:, None]
    masses: Array = np.exp(-range_N1 * np.square(codes.astype(np.float32) / np.float32(STEPS)))
    return masses


def _log_share(largest_N: Array, tail_N: Array) -> Array:
    """Return the logarithm of the largest sampled mass as a share of the tail; 0 where there is no tail."""
    shares: Array = np.divide(
        largest_N, tail_N, out=np.ones_like(tail_N), where=(tail_N > 0) & (largest_N > 0)
    )
    return np.log(shares)


def _bytes(values_N: Array, dtype: str) -> Array:
    return values_N.astype(dtype)[:, None].view(np.uint8)


def _numbers(rows: Array, dtype: str) -> Array:
    numbers: Array = rows.copy().view(dtype)[:, 0]
    return numbers
