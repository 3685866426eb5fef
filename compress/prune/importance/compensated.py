"""What would be lost for good: the energy of a unit's output that least squares cannot get from the units that stay.

Units are removed one after another, the cheapest first, and what stays is refitted after each (`elimination`), which
is what ``compensate: true`` does afterwards. A unit's score is the share of output energy lost once it and all before
it are gone: the order, and so what stays, fits every target. Hidden channels score by `output_energy`, which left a
better model after refitting than eliminating them did (they carry what later layers write, too), and so do experts and
their neurons, which are not refitted.

Costs more than `output_energy`: whole Gram matrices, ``O(F³)`` a layer.
"""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")

DAMPING = 1e-2
"""λ as a share of an input's mean energy; the order it gives does not depend on how much text there is."""


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
