"""What an importance metric is: a file in ``importance/`` that scores the units pruning can remove.

Units: ``layers``, ``hidden`` channels, ``ffn`` neurons, and ``kv_groups`` (a key-value head with the query
heads that share it). The higher the score, the more the unit matters; scores are compared only within one
layer and kind (hidden channels and layers: within the model).

Planning asks a metric for its `UNITS`, so a metric's top level imports no torch.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol, cast

from compress import plugins
from compress.errors import InputError
from compress.models.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Unit = Literal["layers", "hidden", "ffn", "kv_groups", "heads", "experts", "expert_ffn"]


class Importance(Protocol):
    """A file in ``importance/``."""

    UNITS: tuple[Unit, ...]
    """What it can score."""

    def score(
        self, model: "PreTrainedModel", layout: Layout, batches: "Iterable[Tensor]"
    ) -> "dict[Unit, Tensor]":
        """Return fp64 scores: layers ``[L]``, hidden ``[H]``, ffn ``[L, F]``, kv_groups ``[L, G]``,
        heads ``[L, G, h]``, experts ``[L, E]``, expert_ffn ``[L, E, F]``.

        Called in inference mode. `batches` are token ids ``[B, T]`` without padding, on the model's device.
        """


def importance(name: str, units: Iterable[Unit]) -> Importance:
    """Return the metric of that name. Raises `InputError` when there is none or it scores other units."""
    metric = cast(Importance, plugins.load("prune.importance", name))
    if lacking := [unit for unit in units if unit not in metric.UNITS]:
        raise InputError(f"importance '{name}' scores {', '.join(metric.UNITS)}, not {', '.join(lacking)}")
    return metric
