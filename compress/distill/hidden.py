"""Hidden states of a pruned student beside those of its teacher: no projection is learned, the pruning map says which.

After a student's layer the residual stream stands where the teacher's stands after the same layer and all that were
removed behind it; its channels are the teacher's that stayed. So a student that lost only what did nothing has the
teacher's very states there.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.models.pruning_map import PRUNING_MAP, PruningMap, read_map
from compress.models.spec import read_config

SMALLEST = 1e-12
"""The least mean square to take a share of: a teacher's state may be zero."""

Kind = Literal["layers", "hidden"]
NAMES: dict[Kind, str] = {"layers": "layers", "hidden": "hidden channels"}


@dataclass(frozen=True)
class Matching:
    """Which hidden states of two models belong together."""

    student_layers: Sequence[str]
    """Names of the student's layers in the live model."""
    teacher_layers: Sequence[str]
    """For each of them, the teacher's layer after which its state is to be compared."""
    channels: Sequence[int]
    """For each of the student's channels, the teacher's."""
    gain: float = 1.0
    """What the teacher's states are multiplied by first."""


NOTHING = Matching((), (), ())
"""Between models whose hidden states are not compared."""


def matching(student: Path, teacher: Path) -> Matching:
    """Return which hidden states of two folders belong together, by their pruning maps.

    The teacher may be the student's original, another model pruned from it, or any of the student's structure. Raises
    `InputError` where parts of the student stand for none of the teacher's.
    """
    ours, theirs = _Model.read(student), _Model.read(teacher)
    layers = _places("layers", ours, theirs)
    # Up to the next layer that stayed, the teacher's layers are those whose work the student's layer must do.
    ends = [*layers[1:], theirs.layout.num_layers]
    return Matching(
        student_layers=ours.layout.layers,
        teacher_layers=[theirs.layout.layers[end - 1] for end in ends],
        channels=_places("hidden", ours, theirs),
        gain=_gain(ours.layout, theirs.layout),
    )


@dataclass(frozen=True)
class _Model:
    """What its folder says about a model's parts."""

    folder: Path
    layout: Layout
    map: PruningMap

    @classmethod
    def read(cls, folder: Path) -> "_Model":
        return cls(folder, layout(read_config(folder)), read_map(folder) or PruningMap({}))

    def num_own(self, kind: Kind) -> int:
        return self.layout.num_layers if kind == "layers" else self.layout.hidden

    def kept(self, kind: Kind) -> list[int]:
        return self.map.kept(kind, self.num_own(kind))

    def num_original(self, kind: Kind) -> int:
        return self.map.num_original(kind, self.num_own(kind))


def _places(kind: Kind, ours: _Model, theirs: _Model) -> list[int]:
    """Return the teacher's number of each of the student's layers or channels."""
    if ours.num_original(kind) != theirs.num_original(kind):
        raise InputError(_other_original(kind, ours, theirs))
    place = {index: number for number, index in enumerate(theirs.kept(kind))}
    kept = ours.kept(kind)
    if lacking := [index for index in kept if index not in place]:
        raise InputError(
            f"hidden_weight: the teacher lacks {len(lacking)} of the student's {len(kept)} {NAMES[kind]}, the first "
            f"of them number {lacking[0]} of the original: they were pruned differently. Take the original as teacher"
        )
    return [place[index] for index in kept]


def _other_original(kind: Kind, ours: _Model, theirs: _Model) -> str:
    num_ours, num_theirs, name = ours.num_own(kind), theirs.num_own(kind), NAMES[kind]
    if kind in ours.map.parts or kind in theirs.map.parts:
        return (
            f"hidden_weight: teacher and student were not pruned from one model. By {PRUNING_MAP}, what the student "
            f"came from had {ours.num_original(kind)} {name}, and what the teacher came from "
            f"{theirs.num_original(kind)}"
        )
    return (
        f"hidden_weight: the student has {num_ours} {name}, the teacher {num_theirs}, and which of them belong "
        f"together is not known: {ours.folder} has no {PRUNING_MAP} that says so. The student must be pruned from "
        "the teacher, or have its layers and channels"
    )


def _gain(ours: Layout, theirs: Layout) -> float:
    """Return how many times the teacher's state the student's is when both compute the same.

    Norms without weights leave their rescaling to what they read, the stream itself where the head is tied
    (`compress.models.rescaling`).
    """
    in_stream = ours.tied and not ours.norms_over("hidden")
    return sqrt(theirs.hidden / ours.hidden) if in_stream else 1.0


class HiddenDistance(nn.Module):
    """How far a student's hidden states are from its teacher's where the two belong together."""

    def __init__(self, matching: Matching) -> None:
        super().__init__()
        self._matching = matching
        self._channels: Tensor
        self.register_buffer(
            "_channels", torch.tensor(matching.channels, dtype=torch.int64), persistent=False
        )

    @contextmanager
    def of_student(self, model: PreTrainedModel) -> Iterator[list[Tensor]]:
        """Fill the list with the states ``[B, T, D]`` after the student's layers while it runs."""
        with _states(model, self._matching.student_layers) as states:
            yield states

    @contextmanager
    def of_teacher(self, model: PreTrainedModel) -> Iterator[list[Tensor]]:
        """Fill the list with the teacher's states in their places, at the student's channels."""
        channels = self._channels.to(model.device)
        with _states(model, self._matching.teacher_layers, channels) as states:
            yield states

    def forward(self, batch: Batch, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Return the squared distance as a share of the teacher's square, the mean of all layers, summed over tokens.

        Shares are each token's own: the few with enormous states would outweigh all others in a common one, and the
        sum would depend on how a batch is split. Positions that predict nothing are left out.
        """
        total = ours[0].new_zeros((), dtype=torch.float32)
        for our_BTD, their_BTD in zip(ours, theirs, strict=True):
            pair = our_BTD, their_BTD.to(our_BTD.device)
            our_ND, their_ND = (batch.before_targets(states).float() for states in pair)
            their_ND = self._matching.gain * their_ND
            square_N = their_ND.square().mean(-1).clamp_min(SMALLEST)
            total = total + ((our_ND - their_ND).square().mean(-1) / square_N).sum()
        return total / len(ours)


@contextmanager
def _states(
    model: PreTrainedModel, layers: Sequence[str], channels: Tensor | None = None
) -> Iterator[list[Tensor]]:
    states: list[Tensor] = []

    def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        # Older layers return their state first in a tuple.
        state_BTD: Tensor = output[0] if isinstance(output, tuple) else output
        states.append(state_BTD if channels is None else state_BTD.index_select(-1, channels))

    handles = [model.get_submodule(name).register_forward_hook(note) for name in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
