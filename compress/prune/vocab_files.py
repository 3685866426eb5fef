"""A model's folder with fewer tokens: counting their uses, cutting the weights, rewriting the tokenizer's files."""

import json
import shutil
from collections.abc import Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.data.tokens import PackedTokens
from compress.errors import InputError, StepFailed
from compress.models import tokenizer_json
from compress.models.layout import Layout
from compress.models.pruning_map import copy_map
from compress.models.shards import INDEX, Shards, read_shards, write_shards
from compress.models.spec import check_tokenizer, copy_tokenizer
from compress.models.special_ids import (
    MODEL_SETTINGS,
    TOKENIZER_SETTINGS,
    named_tokens,
    read_settings,
    renumbered,
    renumbered_tokenizer,
    special_ids,
)
from compress.models.token_map import mapped_ids, write_kept
from compress.plugins import Context
from compress.prune.unused_specials import unused_specials
from compress.prune.vocab_choice import Vocabulary
from compress.records import TensorSpec

ADDED = "added_tokens.json"
WITHOUT_IDS = ("special_tokens_map.json", "chat_template*")
"""The tokenizer's files that stay as they are."""
OLD_FORMS = ("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.model.v*", "tekken.json")
"""Other ways to write what ``tokenizer.json`` holds. They would disagree with it, so they are left out."""

COUNTED_AT_ONCE = 2**22
"""Tokens: 32 MiB of ids."""


def read_vocabulary(
    folder: Path, counts: Sequence[int], keep: Sequence[str], all_special: bool = False
) -> Vocabulary:
    """Return what must stay of a folder's tokenizer, and what each token is built from.

    counts: the corpus' uses of every id of the model. Special tokens that nothing uses count as padding unless
    `all_special` are to stay. Raises `InputError` without a ``tokenizer.json``, for one that does not fit, and for one
    of an unknown kind.
    """
    num_ids = len(counts)
    check_tokenizer(folder, num_ids)
    content = tokenizer_json.read(folder)
    ids = tokenizer_json.token_ids(content)
    unused = set[int]() if all_special else unused_specials(folder, content, counts)
    required = tokenizer_json.always_kept(content, unused) | _kept_texts(folder, ids, keep)
    for name in MODEL_SETTINGS:
        required |= {index for index in special_ids(read_settings(folder, name)) if index < num_ids}
    named = {token for name in TOKENIZER_SETTINGS for token in named_tokens(read_settings(folder, name))}
    required |= {ids[token] for token in named if token in ids and ids[token] not in unused}
    required |= {index for index in _added_ids(folder) if index < num_ids and index not in unused}
    tokens = frozenset(ids.values()) - (unused - required)
    return Vocabulary(tokens, tokenizer_json.parts(content), frozenset(required))


def count_tokens(corpus: Path, num_ids: int, context: Context) -> list[int]:
    """Return how often the corpus uses each id. Raises `InputError` for ids the model does not have."""
    tokens = PackedTokens.open(corpus)
    counts = torch.zeros(num_ids, dtype=torch.int64)
    rows = max(1, COUNTED_AT_ONCE // tokens.sequence_length)
    for start in range(0, tokens.num_sequences, rows):
        if context.stopping:
            context.stop()
        stop = min(start + rows, tokens.num_sequences)
        found = torch.bincount(tokens.rows(start, stop).flatten(), minlength=num_ids)
        if len(found) > num_ids:
            raise InputError(
                f"corpus: its largest id is {len(found) - 1}, the model's vocabulary {num_ids}; it was tokenized "
                "with another tokenizer"
            )
        counts += found
        context.progress(
            stop * tokens.sequence_length, tokens.num_sequences * tokens.sequence_length, "tokens"
        )
    as_list: list[int] = counts.tolist()
    return as_list


def copy_unchanged(source: Path, target: Path) -> None:
    """Copy a model and its tokenizer as they are."""
    for name in (*read_shards(source), INDEX, *MODEL_SETTINGS):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    copy_tokenizer(source, target)
    copy_map(source, target)


def write_without_dropped(
    source: Path, context: Context, before: Layout, after: Layout, kept: Sequence[int]
) -> None:
    """Write model and tokenizer with only the ids `kept`, renumbered in their order, and ``token_map.json``.

    Raises `StepFailed` where transformers reads the new tokenizer's tokens otherwise than meant.
    """
    new_ids = {old: new for new, old in enumerate(kept)}
    _write_weights(source, context.folder, before, after, torch.tensor(kept))
    for name, settings in (
        ("config.json", after.config),
        (MODEL_SETTINGS[1], read_settings(source, MODEL_SETTINGS[1])),
    ):
        if (source / name).is_file():
            _write(context.folder / name, renumbered(settings, new_ids))
    _write_tokenizer(source, context.folder, new_ids, set(range(before.vocab)) - set(kept))
    write_kept(source, context.folder, kept)
    copy_map(source, context.folder)
    if old := sorted({file.name for pattern in OLD_FORMS for file in source.glob(pattern)}):
        context.warn(f"{', '.join(old)} left out: the new vocabulary is in {tokenizer_json.FILE} alone")
    if mapped_ids(context.folder, source) != list(kept):
        raise StepFailed(
            "the rewritten tokenizer does not read as meant: transformers gives its tokens other ids"
        )


def _write_weights(source: Path, target: Path, before: Layout, after: Layout, kept: Tensor) -> None:
    files, axes, shapes = read_shards(source), before.tensors, after.shapes()
    # What follows from other tensors (the copy of a tied head) is stored by some, and written by nobody.
    shards: Shards = {
        file: {
            name: TensorSpec(shape=shapes[name], dtype=spec.dtype)
            for name, spec in tensors.items()
            if name in axes
        }
        for file, tensors in files.items()
    }
    stored_in = {name: file for file, tensors in files.items() for name in tensors}
    with ExitStack() as stack:
        opened: dict[str, Any] = {
            file: stack.enter_context(safe_open(source / file, framework="pt")) for file in files
        }

        def load(name: str) -> memoryview:
            tensor: Tensor = opened[stored_in[name]].get_tensor(name)
            for number, dim in enumerate(axes[name]):
                if dim == "vocab":
                    tensor = tensor.index_select(number, kept)
            data: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            return data

        write_shards(target, shards, load)


def _write_tokenizer(source: Path, target: Path, new_ids: dict[int, int], dropped: Set[int]) -> None:
    content = tokenizer_json.without_dropped(tokenizer_json.read(source), new_ids)
    _write(target / tokenizer_json.FILE, content)
    if (source / TOKENIZER_SETTINGS[0]).is_file():
        settings = renumbered_tokenizer(read_settings(source, TOKENIZER_SETTINGS[0]), new_ids, dropped)
        _write(target / TOKENIZER_SETTINGS[0], settings)
    if (source / ADDED).is_file():
        added = read_settings(source, ADDED).items()
        stay = {token: new_ids.get(old, old) for token, old in added if old not in dropped}
        _write(target / ADDED, stay)
    for pattern in WITHOUT_IDS:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def _kept_texts(folder: Path, ids: dict[str, int], keep: Sequence[str]) -> set[int]:
    """Return the ids of the tokens of these names, and of all tokens these texts are cut into."""
    from tokenizers import Tokenizer

    if not keep:
        return set()
    tokenizer = Tokenizer.from_file(str(folder / tokenizer_json.FILE))
    cut = {index for text in keep for index in tokenizer.encode(text, add_special_tokens=False).ids}
    return cut | {ids[token] for token in keep if token in ids}


def _added_ids(folder: Path) -> set[int]:
    """Return the ids that the tokenizer's other files give to added tokens."""
    added = read_settings(folder, TOKENIZER_SETTINGS[0]).get("added_tokens_decoder") or {}
    return {*map(int, added), *read_settings(folder, ADDED).values()}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
