"""How a target is stored: sorted ids in about 14 bits each, probabilities in 8, all targets in equally many bytes.

A likely id's probability is written as how far its logarithm is below the largest one's, d, on a scale that is finer
where probabilities are larger: the code is c = round(255 · √(d / R)), where R is the target's own largest d. So
|d̂ − d| ≤ √(d R) / 255 + R / 255² / 4, and d̂ = 0 for the largest. Decoded masses are scaled to what the exactly stored
tail leaves for them. Sampled ids have equal shares of the tail, so only they themselves are written.

Shapes: N tokens, K likely ids, S sampled ids.
"""

from dataclasses import dataclass

import numpy as np
import torch

from compress.distill.sorted_ids import Array, SortedIds
from compress.distill.targets import Tail, Targets

STEPS = 255
FARTHEST = 40.0
"""Nats below the largest probability at which all are alike: e⁻⁴⁰ is nothing in fp32."""


@dataclass(frozen=True)
class Coding:
    """The layout of a target's bytes: codes, ids, sampled ids, R (fp16), tail and entropy (fp32)."""

    vocabulary: int
    top_k: int
    """Likely ids of a target; at most the vocabulary."""
    tail: Tail
    samples: int
    """Sampled ids of a target; none of a bucket."""

    @property
    def num_bytes(self) -> int:
        """Bytes of a target."""
        return sum(self._widths)

    def encode(self, targets: Targets) -> Array:
        """Return the bytes of each target: uint8 ``[N, num_bytes]``."""
        assert targets.has_bucket == (self.tail == "bucket")
        probs_NK = targets.probs_NK[:, : self.top_k].float().cpu().numpy()
        ids_NK = targets.ids_NK.cpu().numpy()
        tail_N = targets.tail_N if targets.has_bucket else targets.probs_NK[:, self.top_k :].sum(-1)
        codes, range_N = _codes(probs_NK)
        parts = [codes, self._likely.encode(ids_NK[:, : self.top_k])]
        if self.samples:
            parts.append(self._sampled.encode(ids_NK[:, self.top_k :]))
        return np.concatenate([*parts, _bytes(range_N, "<f2"), *_both(tail_N, targets.entropy_N)], axis=1)

    def decode(self, rows: Array) -> Targets:
        """Return the targets of rows of bytes, masses and entropies in fp32."""
        codes, likely, sampled, range_, tail, entropy = np.split(rows, np.cumsum(self._widths)[:-1], axis=1)
        tail_N, entropy_N = (_numbers(part, "<f4") for part in (tail, entropy))
        probs_NK = _probabilities(codes, _numbers(range_, "<f2"), tail_N)
        ids_NK = self._likely.decode(likely)
        if self.samples:
            ids_NK = np.concatenate([ids_NK, self._sampled.decode(sampled)], axis=1)
            shares_NS = np.repeat(tail_N[:, None] / np.float32(self.samples), self.samples, axis=1)
            probs_NK = np.concatenate([probs_NK, shares_NS], axis=1)
        has_bucket = self.tail == "bucket"
        return Targets(
            ids_NK=torch.from_numpy(ids_NK),
            probs_NK=torch.from_numpy(probs_NK),
            tail_N=torch.from_numpy(tail_N if has_bucket else np.zeros_like(tail_N)),
            entropy_N=torch.from_numpy(entropy_N),
            has_bucket=has_bucket,
        )

    @property
    def _widths(self) -> list[int]:
        sampled = self._sampled.num_bytes if self.samples else 0
        return [self.top_k, self._likely.num_bytes, sampled, 2, 4, 4]

    @property
    def _likely(self) -> SortedIds:
        return SortedIds(self.top_k, self.vocabulary)

    @property
    def _sampled(self) -> SortedIds:
        return SortedIds(self.samples, self.vocabulary)


def _codes(probs_NK: Array) -> tuple[Array, Array]:
    """Return the codes of probabilities, uint8 ``[N, K]``, and R as it is stored, ``[N]``."""
    with np.errstate(divide="ignore"):
        logs_NK = np.log(probs_NK)
    below_NK = np.minimum(logs_NK.max(axis=1, keepdims=True) - logs_NK, FARTHEST)
    range_N = below_NK.max(axis=1).astype("<f2")
    safe_N1 = np.maximum(range_N.astype(np.float32), np.finfo(np.float32).tiny)[:, None]
    # R in fp16 may be a little less than the largest d.
    codes = np.minimum(np.rint(STEPS * np.sqrt(below_NK / safe_N1)), STEPS)
    return codes.astype(np.uint8), range_N


def _probabilities(codes: Array, range_N: Array, tail_N: Array) -> Array:
    shares_NK = np.square(codes.astype(np.float32) / np.float32(STEPS))
    masses_NK = np.exp(-range_N.astype(np.float32)[:, None] * shares_NK)
    scale_N = (np.float32(1) - tail_N) / masses_NK.sum(axis=1)
    scaled: Array = masses_NK * scale_N[:, None]
    return scaled


def _both(tail_N: torch.Tensor, entropy_N: torch.Tensor) -> list[Array]:
    return [_bytes(values.float().cpu().numpy(), "<f4") for values in (tail_N, entropy_N)]


def _bytes(values_N: Array, dtype: str) -> Array:
    return values_N.astype(dtype)[:, None].view(np.uint8)


def _numbers(rows: Array, dtype: str) -> Array:
    numbers: Array = rows.copy().view(dtype)[:, 0]
    return numbers
