"""How much a unit adds to the output of the linear map that reads it: the energy ``E[a²] · ‖w‖²``.

An FFN neuron with activation a and ``down_proj`` column w; a head, or KV group, with the Gram matrix G of its
``o_proj`` inputs and columns W: ``tr(W G Wᵀ)``; a hidden channel the same over all maps that read it, each map's
energies as shares of its whole; an expert the energy of what it adds. Units that are active but not listened to
score low.
"""

from typing import TYPE_CHECKING

from compress.prune.interface import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from compress.prune.calibration import Calibration

UNITS: tuple[Unit, ...] = ("hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn")


def score(calibration: "Calibration") -> "dict[Unit, Tensor]":
    """Return the energy of every hidden channel, neuron, KV group, head, expert and expert's neuron.

    A group's energy is the sum over its heads: what they say together is not looked at.
    """
    from compress.prune.listening import HiddenEnergy, listen
    from compress.prune.parts import empty_scores

    layout = calibration.layout
    hidden = HiddenEnergy(layout.hidden)
    scores = empty_scores(layout)
    del scores["layers"]
    for heard in listen(calibration, hidden, whole=False):
        heads = heard.attention.energy().reshape(layout.num_kv_heads, layout.heads_per_group)
        scores["kv_groups"][heard.number] = heads.sum(-1)
        if "heads" in scores:
            scores["heads"][heard.number] = heads
        if heard.ffn is not None:
            scores["ffn"][heard.number] = heard.ffn.energy()
        if heard.expert_energy is not None and heard.expert_ffn_energy is not None:
            scores["experts"][heard.number] = heard.expert_energy
            scores["expert_ffn"][heard.number] = heard.expert_ffn_energy
    return scores | {"hidden": hidden.energy_C}
