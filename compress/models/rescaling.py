"""What must be scaled when a model gets narrower, so that its norms go on giving what they gave.

A norm divides by the mean square over *all* its channels. Removed channels, the least active, leave the sum nearly as
it was, so the gains grow by ``sqrt(H/H')``. With the larger epsilon that `Layout.resized` writes, removing channels
that are always zero is then exact for RMSNorm, and for LayerNorm where the other channels' mean is zero.
"""

from dataclasses import dataclass
from math import sqrt

from compress.models.family import Axis, Dim, option
from compress.models.layout import Layout


@dataclass(frozen=True)
class Scale:
    """A stored weight w becomes ``(w + offset) * factor - offset``."""

    factor: float
    offset: float = 0.0


def rescaled(before: Layout, after: Layout) -> dict[str, Scale]:
    """Return how stored tensors must be scaled, by the parent's names, those that stay as they are left out.

    Embeddings that the model multiplies by ``sqrt(hidden_size)`` grow by the gains' factor; where the output head is
    tied to them, the last norm takes it back. Norms without weights leave it to the weights behind them to grow.
    """
    scales: dict[str, Scale] = {}
    offset = float(option(before.family, "NORM_OFFSET"))
    normed: tuple[Axis, ...] = ("hidden", "query", "key_value")
    for axis in normed:
        gain = sqrt(before.size(axis) / after.size(axis))
        if gain != 1.0:
            scales |= {f"{name}.weight": Scale(gain, offset) for name in before.norms_over(axis)}
    if after.hidden == before.hidden:
        return scales
    gain = sqrt(before.hidden / after.hidden)
    if not before.norms_over("hidden"):
        scales |= _behind_norms(before, gain)
    if option(before.family, "EMBEDDING_TIMES_SQRT_HIDDEN"):
        scales[before.embedding] = Scale(gain)
        if before.tied:
            scales.pop(f"{before.norms[-1]}.weight")
    return scales


def _behind_norms(before: Layout, gain: float) -> dict[str, Scale]:
    """Return the scales of the weights that read a norm's output.

    A tied head reads it and is the embedding: then all that is added to the hidden state grows with the embedding,
    which the norms do not notice.
    """

    def grows(name: str, axes: tuple[Dim, ...]) -> bool:
        reads = len(axes) == 2 and axes[1 - before.out_dim(name)] == "hidden" and name != before.embedding
        return reads or (before.tied and "hidden" in axes)

    return {name: Scale(gain) for name, axes in before.tensors.items() if grows(name, axes)}
