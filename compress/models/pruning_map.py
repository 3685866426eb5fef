"""Which parts of the model it was pruned from a model still has: ``pruning_map.json``, beside the weights.

Of every kind that lost units, ``kept`` lists those that stay, ascending, by the numbering of the *original*: the first
ancestor without a map. Where a pruned model is pruned again, trained or quantized, the map still leads there, so parts
of any two models of one original can be compared by number. Kinds that stayed whole are left out: a model that lost
nothing has an empty map.

| kind | what is in `kept` |
|---|---|
| ``layers``, ``hidden`` | numbers |
| ``ffn``, ``kv_groups``, ``experts`` | a list for every layer that stays, in their order |
| ``heads`` | for every layer that stays, a list for every KV group that stays: places inside the group |
| ``expert_ffn`` | for every layer that stays, a list for every expert that stays |

``of`` is how many of a kind the original had (in one layer, group or expert). ``scores`` are those of all units that
the last step to remove some of the kind chose among, by the numbering of that step's parent; ``null`` where a unit was
never about to go.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PRUNING_MAP = "pruning_map.json"

INSIDE = {"heads": "kv_groups", "expert_ffn": "experts"}
"""Kinds that are numbered anew in each unit of another kind, and that kind."""

Indices = Any
"""Numbers in as many lists as the kind has: ``[3, 4]``, by layer ``[[3], [4]]``, by layer and group ``[[[3]]]``."""


@dataclass(frozen=True)
class Part:
    """What is left of one kind of unit."""

    kept: Indices
    of: int
    scores: Any = None


@dataclass(frozen=True)
class PruningMap:
    """The kinds that lost units."""

    parts: Mapping[str, Part]

    def kept(self, kind: str, num_own: int) -> list[int]:
        """Return the original's numbers of a model's `num_own` layers or hidden channels."""
        return list(self.parts[kind].kept) if kind in self.parts else list(range(num_own))

    def num_original(self, kind: str, num_own: int) -> int:
        """Return how many layers or hidden channels the original of a model that has `num_own` had."""
        return self.parts[kind].of if kind in self.parts else num_own


def read_map(folder: Path) -> PruningMap | None:
    """Return what is left of the original, or ``None`` for a model that was never pruned."""
    path = folder / PRUNING_MAP
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return PruningMap({kind: Part(**part) for kind, part in content.items()})


def write_map(parent: Path, folder: Path, layers: Sequence[int], now: Mapping[str, Part]) -> None:
    """Write the map of a model cut from the parent's.

    `layers`: those of the parent that stay. `now`: the kinds that lost units, by the parent's numbering.
    """
    before = read_map(parent)
    parts = now if before is None else composed(before.parts, now, layers)
    content = {kind: asdict(part) for kind, part in parts.items()}
    (folder / PRUNING_MAP).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def copy_map(source: Path, target: Path) -> None:
    """Copy the map, if there is one, beside weights of the same structure."""
    if (source / PRUNING_MAP).is_file():
        shutil.copyfile(source / PRUNING_MAP, target / PRUNING_MAP)


def composed(before: Mapping[str, Part], now: Mapping[str, Part], layers: Sequence[int]) -> dict[str, Part]:
    """Return what two prunings left: `before` by the original's numbering, `now` by that of what `before` left."""
    parts: dict[str, Part] = {}
    for kind in (*now, *(kind for kind in before if kind not in now)):
        new, old = now.get(kind), before.get(kind)
        if old is None:
            assert new is not None
            parts[kind] = new
        else:
            kept = _chosen(kind, old.kept, now, layers)
            parts[kind] = Part(kept, old.of, old.scores if new is None else new.scores)
    return parts


def _chosen(kind: str, old: Indices, now: Mapping[str, Part], layers: Sequence[int]) -> Indices:
    """Return, of the numbers `before` left, those that `now` leaves too."""
    new = now[kind].kept if kind in now else None
    if kind in ("layers", "hidden"):
        return _at(old, new)
    rows = [old[layer] for layer in layers]
    if kind not in INSIDE:
        return [_at(row, _place(new, i)) for i, row in enumerate(rows)]
    outer = now[INSIDE[kind]].kept if INSIDE[kind] in now else None
    groups = [_at(row, _place(outer, i)) for i, row in enumerate(rows)]
    return [
        [_at(units, _place(_place(new, i), j)) for j, units in enumerate(row)] for i, row in enumerate(groups)
    ]


def _at(values: Sequence[Any], places: Sequence[int] | None) -> list[Any]:
    return list(values) if places is None else [values[place] for place in places]


def _place(lists: Sequence[Any] | None, index: int) -> Any:
    return None if lists is None else lists[index]
