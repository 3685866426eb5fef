"""What a checkpoint's JSON files and tensors tell of why it cannot work, before any work is done with it."""

import json
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.errors import InputError
from compress.models.shards import read_shards
from compress.records import ModelSpec

PLACES = 64
"""Places at which a stored head is compared with the embedding it is said to be."""
PLACE_BYTES = 4096
READERS = ("sentencepiece", "tiktoken")
"""Packages by which transformers reads a tokenizer that is only a SentencePiece model."""


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `InputError` for a padding token that has no row in the embedding: transformers makes no such model."""
    pad, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(vocabulary, int) and not -vocabulary <= pad < vocabulary:
        raise InputError(
            f"config.json: pad_token_id is {pad}, and the vocabulary has the ids 0 to {vocabulary - 1}. Set it to one "
            "of them, or to null"
        )


def check_checkpoint(folder: Path, spec: ModelSpec) -> None:
    """Raise `InputError` for a configuration that makes no model, and for a tied head that is not the embedding."""
    try:
        check_config(spec.config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    embedding, head = (
        next((name for name in spec.tensors if name.endswith(ending)), None)
        for ending in ("embed_tokens.weight", "lm_head.weight")
    )
    if not spec.config.get("tie_word_embeddings") or embedding is None or head is None:
        return
    shapes = [spec.tensors[name].shape for name in (embedding, head)]
    if shapes[0] != shapes[1]:
        found = f"{head} is {list(shapes[1])} and {embedding} {list(shapes[0])}"
    elif _differ(folder, embedding, head):
        found = f"{head} holds other numbers than {embedding}"
    else:
        return
    raise InputError(
        f"{folder}: config.json ties the output head to the embedding, but {found}. Set tie_word_embeddings to false, "
        "or remove the head"
    )


def check_tokenizer_fits(folder: Path, vocabulary: int | None) -> None:
    """Raise `InputError` for a tokenizer that nothing here reads, or that cuts text into ids the model has no row for.

    Special tokens beyond the embedding (an image's, in a text model) are never met in a text and do no harm.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        _check_readable(folder)
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, added = content["model"]["vocab"], content.get("added_tokens") or ()
        ids = list(model.values()) if isinstance(model, dict) else list(range(len(model)))
        special = {token["id"] for token in added if token.get("special")}
        ids += [token["id"] for token in added]
        beyond = [
            each for each in ids if each not in special and vocabulary is not None and each >= vocabulary
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no valid tokenizer file") from error
    if beyond:
        raise InputError(
            f"the tokenizer in {folder} does not fit the model: its largest id is {max(beyond)}, and the model has "
            f"{vocabulary} embeddings"
        )


def _check_readable(folder: Path) -> None:
    """Raise `InputError` where a SentencePiece model is all there is, and no package to read it."""
    others = ("vocab.json", "vocab.txt", "tekken.json")
    if any((folder / name).is_file() for name in others) or any(find_spec(name) for name in READERS):
        return
    if pieces := sorted(path.name for path in folder.glob("*.model")):
        raise InputError(
            f"{folder} has its tokenizer as {pieces[0]} alone, and no package to read it is installed. Make its "
            "tokenizer.json once, where sentencepiece is: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def _differ(folder: Path, one: str, other: str) -> bool:
    """Return whether two tensors of one size differ at any of some places, evenly spread."""
    (path, start, size), (other_path, other_start, _) = (_place(folder, name) for name in (one, other))
    step = max(PLACE_BYTES, size // PLACES)
    with path.open("rb") as file, other_path.open("rb") as other_file:
        for at in range(0, size, step):
            length = min(PLACE_BYTES, size - at)
            file.seek(start + at)
            other_file.seek(other_start + at)
            if file.read(length) != other_file.read(length):
                return True
    return False


def _place(folder: Path, tensor: str) -> tuple[Path, int, int]:
    """Return the file a tensor is in, where it begins there, and its bytes."""
    path = folder / next(name for name, tensors in read_shards(folder).items() if tensor in tensors)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        start, stop = json.loads(file.read(length))[tensor]["data_offsets"]
    return path, 8 + length + start, stop - start
