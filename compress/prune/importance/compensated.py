"""What would be lost for good: the energy of a unit's output that least squares cannot get from the units that stay.

Units are removed one after another, the cheapest first, and what stays is refitted after each (`elimination`), which
is what ``compensate: true`` does afterwards. A unit's score is the share of output energy lost once it and all before
it are gone: the order, and so what stays, fits every target. Hidden channels score by `output_energy`, which left a
better model after refitting than eliminating them did (they carry what later layers write, too), and so do experts and
their neurons, which are not refitted.

Costs more than `output_energy`: whole Gram matrices, ``O(F³)`` a layer.
"""

from typing import TYPE_CHECKING

from compress.models.layout import layout
from compress.prune.interface import Unit
from compress.records import ModelSpec, Work

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")

DAMPING = 1e-2
"""λ as a share of an input's mean energy; the order it gives does not depend on how much text there is."""


CALLS_PER_REMOVAL = 25
"""Operations for every unit that is eliminated: one after the other, since each looks at what the last one left."""


def beside(spec: ModelSpec, tokens: int, layers_left: int = 1) -> Work:
    """Gram matrices of what attention's and the FFN's output maps read, and removing all of it, unit by unit.

    Inverting n inputs takes 2 n³, and the rounds of removals about as much for each of the two matrices.
    """
    shape = layout(spec.config)
    query, ffn = shape.num_heads * shape.head_dim, shape.ffn
    sums = sum(2.0 * n * n * (tokens + shape.hidden) for n in (query, ffn))
    removals = 6.0 * (2 * query**3 + ffn**3)  # attention's twice: groups, and heads inside them
    units = shape.num_kv_heads + shape.num_heads + ffn
    return Work(
        exact_flops=shape.num_layers * (sums + removals),
        num_calls=shape.num_layers * units * CALLS_PER_REMOVAL,
    )


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the share of energy lost once a unit and all less important ones are gone."""
    from compress.prune.elimination import elimination_costs
    from compress.prune.listening import HiddenEnergy, listen
    from compress.prune.parts import empty_scores

    layout = calibration.layout
    hidden = HiddenEnergy(layout.hidden)
    scores = empty_scores(layout)
    del scores["layers"]
    group = layout.heads_per_group * layout.head_dim
    for heard in listen(calibration, hidden, whole=True):
        attention = heard.attention
        scores["kv_groups"][heard.number] = elimination_costs(
            attention.gram, attention.sensitivity, group, DAMPING
        )
        if "heads" in scores:
            heads = elimination_costs(attention.gram, attention.sensitivity, layout.head_dim, DAMPING)
            scores["heads"][heard.number] = heads.reshape(layout.num_kv_heads, layout.heads_per_group)
        if heard.ffn is not None:
            scores["ffn"][heard.number] = elimination_costs(heard.ffn.gram, heard.ffn.sensitivity, 1, DAMPING)
            heard.ffn = None  # gigabytes that must not outlive the layer
        if heard.expert_energy is not None and heard.expert_ffn_energy is not None:
            scores["experts"][heard.number] = heard.expert_energy
            scores["expert_ffn"][heard.number] = heard.expert_ffn_energy
    return scores | {"hidden": hidden.energy_C}
