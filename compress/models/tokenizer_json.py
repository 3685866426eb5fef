"""What the tokens of a ``tokenizer.json`` are made of, and the file rewritten without some of them.

Dropping tokens must leave a tokenizer that cuts text as before wherever the old cut used only tokens that stay:

- BPE builds a token from two others, those from two others, down to characters (or bytes): where a token stays,
  all of its parts must. Inside a text a token is built exactly as it is built alone, because its end result shows
  that nothing merged across its borders. Merges of tokens that are gone only disappear, so each merge made before
  is still the first possible one.
- WordPiece takes the longest piece that fits, Unigram the likeliest cut: what was best among more is still best.

Whatever text used tokens that are gone is cut into smaller ones; what single characters (or bytes, with byte
fallback) need stays, so no text becomes unreadable that was readable.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from compress.errors import InputError

FILE = "tokenizer.json"

SPACE = "\u2581"
"""SentencePiece's sign for a space. Byte fallback cannot stand in for it: the sign itself would be read back."""

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")

Content = dict[str, Any]
"""What ``tokenizer.json`` holds."""

Parts = dict[int, tuple[int, int]]
"""Token id -> the ids of the two tokens it is built from."""


def read(folder: Path) -> Content:
    """Return the ``tokenizer.json`` of a folder. Raises `InputError` for a kind of model that is not known."""
    content: Content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if kind(content) not in KINDS:
        raise InputError(
            f"{folder / FILE}: tokens cannot be taken out of a {kind(content)} model; only of {', '.join(KINDS)}"
        )
    return content


def kind(content: Content) -> str:
    """Return the kind of model; files of old versions do not say it."""
    model = content["model"]
    if "merges" in model or isinstance(model["vocab"], list):
        return str(model.get("type") or ("BPE" if "merges" in model else "Unigram"))
    return str(model.get("type") or ("WordPiece" if "max_input_chars_per_word" in model else "WordLevel"))


def token_ids(content: Content) -> dict[str, int]:
    """Return every token's id, added tokens included."""
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    return _model_ids(content["model"]) | added


def special_added(content: Content) -> dict[str, int]:
    """Return the ids of the added tokens that are marked as special."""
    return {
        token["content"]: token["id"] for token in content.get("added_tokens") or () if token.get("special")
    }


def always_kept(content: Content, unused_specials: Container[int] = ()) -> set[int]:
    """Return the ids no rewriting may lose: added tokens, those the file names, and what any text can fall back on.

    An added token of `unused_specials` is lost unless the file names it elsewhere.
    """
    found: list[int] = []

    def note(token: int) -> int:
        found.append(token)
        return token

    added = [token for token in content.get("added_tokens") or () if token["id"] not in unused_specials]
    _with_ids({**content, "added_tokens": added}, note)
    ids = token_ids(content)
    model = content["model"]
    found += [ids[model["unk_token"]]] if model.get("unk_token") in ids else []
    return {*found, *_alphabet(model)}


def parts(content: Content) -> Parts:
    """Return what each token is built from. Only BPE builds tokens; a character has no parts."""
    model = content["model"]
    if kind(content) != "BPE":
        return {}
    ids = _model_ids(model)
    prefix = model.get("continuing_subword_prefix") or ""
    ranks: dict[tuple[str, str], int] = {}
    made_by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for merge in map(_pair, model["merges"]):
        ranks.setdefault(merge, len(ranks))
        made_by[_joined(merge, prefix)].append(merge)
    found: Parts = {}
    for token, merges in made_by.items():
        last = merges[0] if len(merges) == 1 else _last_merge(_characters(token, model), ranks, prefix)
        if last is not None and token in ids:
            found[ids[token]] = (ids[last[0]], ids[last[1]])
    return found


def without_dropped(content: Content, new_ids: Mapping[int, int]) -> Content:
    """Return the file with only the tokens in `new_ids` (old id -> new id, in the same order), renumbered."""
    added = [token for token in content.get("added_tokens") or () if token["id"] in new_ids]
    content = _with_ids({**content, "added_tokens": added}, new_ids.__getitem__)
    model = dict(content["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [entry for old, entry in enumerate(vocab) if old in new_ids]
    else:
        model["vocab"] = {token: new_ids[old] for token, old in vocab.items() if old in new_ids}
    if "merges" in model:
        model["merges"] = _merges(model)
    return {**content, "model": model}


def _merges(model: Content) -> list[Any]:
    """Return the merges, each written as it was, whose parts and result are still there."""
    vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""

    def stays(merge: tuple[str, str]) -> bool:
        return merge[0] in vocab and merge[1] in vocab and _joined(merge, prefix) in vocab

    return [entry for entry in model["merges"] if stays(_pair(entry))]


def _model_ids(model: Content) -> dict[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {piece: index for index, (piece, _) in enumerate(vocab)}
    return dict(vocab)


def _alphabet(model: Content) -> set[int]:
    """Return the ids of the bytes where any character can fall back on them, else of every single character."""
    ids = _model_ids(model)
    there = [ids[byte] for byte in BYTES if byte in ids]
    if model.get("byte_fallback") and len(there) == len(BYTES):
        return {*there, *([ids[SPACE]] if SPACE in ids else [])}
    return {*there, *(index for token, index in ids.items() if len(_characters(token, model)) == 1)}


def _characters(token: str, model: Content) -> list[str]:
    """Return the pieces a token's text starts as: characters, marked as the model marks the inside of words."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inside = bool(prefix) and token.startswith(prefix) and token != prefix
    ends = bool(suffix) and token.endswith(suffix) and token != suffix
    text = token[len(prefix) if inside else 0 : len(token) - (len(suffix) if ends else 0)]
    pieces = [prefix + c if inside or place else c for place, c in enumerate(text)]
    return [*pieces[:-1], pieces[-1] + suffix] if ends and pieces else pieces


def _last_merge(
    pieces: list[str], ranks: Mapping[tuple[str, str], int], prefix: str
) -> tuple[str, str] | None:
    """Return the merge that makes one token of the pieces, ``None`` when BPE leaves several."""
    last = None
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        last = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))  # the leftmost of equals, as BPE does
        if last not in ranks:
            return None
        place = pairs.index(last)
        pieces[place : place + 2] = [_joined(last, prefix)]
    return last


def _joined(merge: tuple[str, str], prefix: str) -> str:
    return merge[0] + merge[1][len(prefix) :]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Merges are lists of two, in older files text with a space in between."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_ids(content: Content, renumber: Callable[[int], int]) -> Content:
    """Return the content with `renumber` applied to every id outside the model's vocabulary."""
    new = dict(content)
    new["added_tokens"] = [
        {**token, "id": renumber(token["id"])} for token in content.get("added_tokens") or ()
    ]
    if (padding := content.get("padding")) is not None:
        new["padding"] = {**padding, "pad_id": renumber(padding["pad_id"])}
    if (processor := content.get("post_processor")) is not None:
        new["post_processor"] = _processor(processor, renumber)
    if isinstance(unknown := content["model"].get("unk_id"), int):
        new["model"] = {**content["model"], "unk_id": renumber(unknown)}
    return new


def _processor(processor: Content, renumber: Callable[[int], int]) -> Content:
    """Return a post-processor with its ids renumbered: templates, BERT's and RoBERTa's marks, sequences of those."""
    new = dict(processor)
    if processor["type"] == "Sequence":
        new["processors"] = [_processor(inner, renumber) for inner in processor["processors"]]
    if processor["type"] == "TemplateProcessing":
        new["special_tokens"] = {
            name: {**token, "ids": [renumber(index) for index in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for mark in ("sep", "cls"):
        if mark in processor:
            token, index = processor[mark]
            new[mark] = [token, renumber(index)]
    return new
