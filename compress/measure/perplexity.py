"""How well a text is predicted: its perplexity, its bits a byte, and both beside the original's."""

from math import exp, log
from typing import TYPE_CHECKING

from compress.records import Measurement

if TYPE_CHECKING:
    from compress.meters.clusters import Estimate
    from compress.meters.divergence import TextScores


def perplexity(estimate: "Estimate") -> Measurement:
    return Measurement(
        name="perplexity",
        value=estimate.mean,
        unit="",
        higher_is_better=False,
        n=estimate.n,
        low=estimate.low,
        high=estimate.high,
        degrees=estimate.degrees,
        note="exp(nats a token); interval over sequences",
    )


def bits_per_byte(scores: "TextScores", num_bytes: int) -> list[Measurement]:
    """Return the bits of a byte, and, where the original has read the same tokens, how many more than its."""
    per_nat = len(scores.nats) / log(2) / num_bytes
    value, above = scores.bits_per_byte(num_bytes), scores.nats_above_teacher
    found = [_scaled("bits_per_byte", value, scores.cross_entropy, per_nat, "comparable between tokenizers")]
    if above is not None:
        note = "paired: than the original's, of the same tokens; interval over sequences"
        found.append(_scaled("bits_per_byte_change", per_nat * above.mean, above, per_nat, note))
    return found


def _scaled(name: str, value: float, nats: "Estimate", per_nat: float, note: str) -> Measurement:
    return Measurement(
        name=name,
        value=value,
        unit="bits/byte",
        higher_is_better=False,
        n=nats.n,
        low=None if nats.low is None else per_nat * nats.low,
        high=None if nats.high is None else per_nat * nats.high,
        degrees=nats.degrees,
        note=note,
    )


def perplexity_ratio(scores: "TextScores") -> list[Measurement]:
    """Return perplexity over the original's, where it has read the same tokens."""
    above = scores.nats_above_teacher
    if above is None:
        return []
    low, high = (None if bound is None else exp(bound) for bound in (above.low, above.high))
    note = "of the original's, on the same tokens: paired; interval over sequences"
    return [
        Measurement(
            name="perplexity_ratio",
            value=exp(above.mean),
            unit="ratio",
            higher_is_better=False,
            n=above.n,
            low=low,
            high=high,
            degrees=above.degrees,
            note=note,
        )
    ]
