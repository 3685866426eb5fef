"""Which tokens of the vocabulary it came from a model still has: ``token_map.json``, beside the tokenizer's files.

``kept`` lists, for every id of this model, the id of the same token in the vocabulary that was pruned first; where
a vocabulary is pruned again, the list still leads to the first. So any two models of one vocabulary can be compared
id by id, however their own ids are numbered.
"""

import json
from collections.abc import Sequence
from pathlib import Path

TOKEN_MAP = "token_map.json"


def read_kept(folder: Path) -> list[int] | None:
    """Return the first vocabulary's id of every id here, ascending, or ``None`` where no vocabulary was pruned."""
    path = folder / TOKEN_MAP
    if not path.is_file():
        return None
    kept: list[int] = json.loads(path.read_text(encoding="utf-8"))["kept"]
    return kept


def write_kept(parent: Path, folder: Path, kept: Sequence[int]) -> None:
    """Write the map of a model whose ids are those at places `kept` of the parent's."""
    before = read_kept(parent)
    content = {"kept": list(kept) if before is None else [before[index] for index in kept]}
    (folder / TOKEN_MAP).write_text(json.dumps(content) + "\n", encoding="utf-8")


def mapped_ids(own: Path, other: Path) -> list[int] | None:
    """Return, for every id of `own`, the id of the same token in `other`.

    ``None`` where the maps of the two folders say nothing about them: both have the same, or a token's text is not
    that of the id it is mapped to. The list ends before the first id that `other` does not have, which is that of a
    padding row: `own`'s tokens are all there.
    """
    ours, theirs = read_kept(own), read_kept(other)
    if ours is None or ours == theirs:
        return None
    place = {index: number for number, index in enumerate(theirs)} if theirs is not None else None
    mapped: list[int] = []
    for index in ours:
        if place is not None and index not in place:
            break
        mapped.append(index if place is None else place[index])
    return mapped if _same_tokens(own, other, mapped, len(ours)) else None


def _same_tokens(own: Path, other: Path, mapped: Sequence[int], num_ids: int) -> bool:
    """Compare texts. Some tokenizer classes add a token of their own past the model's ids: it has no row to compare."""
    from compress.models.checkpoint import load_tokenizer

    theirs = load_tokenizer(other).get_vocab()
    ours = {token: index for token, index in load_tokenizer(own).get_vocab().items() if index < num_ids}
    return all(index < len(mapped) and theirs.get(token) == mapped[index] for token, index in ours.items())
