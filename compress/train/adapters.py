"""Which matrices adapters stand beside, known from names and shapes alone: the plan refuses what no step could do."""

from collections.abc import Iterable
from typing import Literal

from compress.errors import InputError, nearest
from compress.models.layout import is_known, layout
from compress.records import ModelSpec

Targets = Literal["all-linear"] | tuple[str, ...]


def adapted(linear: Iterable[str], targets: Targets) -> list[str]:
    """Return those of a model's linear layers, full names, that `targets` names by their last part.

    Raises `InputError` for a target that is none of them.
    """
    names = list(linear)
    if targets == "all-linear":
        return names
    known = sorted({_last(name) for name in names})
    for target in targets:
        if target not in known:
            raise InputError(
                f"lora.targets: the model has no linear layer called '{target}'{nearest(target, known)} "
                f"Allowed: all-linear, or any of {', '.join(known)}"
            )
    return [name for name in names if _last(name) in targets]


def check_adapters(spec: ModelSpec, targets: Targets, rank: int) -> None:
    """Raise `InputError` where a model has no such layers, or none that has so high a rank.

    What an unknown family has is seen once it is loaded.
    """
    if not is_known(spec.config):
        return
    shapes = linear_layers(spec)
    largest = max(adapted(shapes, targets), key=lambda name: min(shapes[name]))
    if rank > min(shapes[largest]):
        rows, columns = shapes[largest]
        raise InputError(
            f"lora.rank: {rank} is more than any adapted matrix has, the largest being {largest} ({rows} by "
            f"{columns}): more than {min(shapes[largest])} rows learn no more. Usual are 8 to 64"
        )


def linear_layers(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a known family's linear layers but the head, by their names in the live model.

    Matrices of experts are in no linear layer, nor is what chooses among them.
    """
    model = layout(spec.config)
    return {
        model.live(name.removesuffix(".weight")): spec.tensors[name].shape
        for name, axes in model.tensors.items()
        if name.endswith(".weight") and len(axes) == 2 and "experts" not in axes
        if model.layer_of(name) is not None and model.expert_of(name) is None
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]
