"""The model to learn from: opened as it is stored, and known to speak the student's language."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from compress.errors import InputError
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.device import default_device
from compress.models.token_map import mapped_ids
from compress.models.tokenizer_json import FILE
from compress.train.numerics import has_fast_bf16


def load_teacher(folder: Path, precision: Literal["auto", "bf16", "fp32"]) -> PreTrainedModel:
    """Return the teacher in the dtype it is stored in; in fp32 where that is asked for, or bf16 is slow."""
    fast = precision != "fp32" and has_fast_bf16(default_device())
    return load_model(folder, dtype=None if fast else torch.float32)


@dataclass(frozen=True)
class SharedIds:
    """How the student's ids and the teacher's belong together."""

    num_ids: int
    """How many ids the student's tokenizer has."""
    of_teacher: list[int] | None = None
    """The teacher's id of each of the student's, padding included; ``None`` where they are the same."""


def shared_ids(student: Path, teacher: Path) -> SharedIds:
    """Return how the ids of two folders belong together: the same, or the student's a part of the teacher's.

    Ids are what is compared: files may differ in what changes none, such as how a prompt is formatted. A student
    with a pruned vocabulary has a token map, and every token of it is one of the teacher's. Raises `InputError` when
    the tokenizers are others.
    """
    tokenizer = load_tokenizer(student)
    num_ids: int = max(tokenizer.get_vocab().values()) + 1
    files = [folder / FILE for folder in (student, teacher)]
    if all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return SharedIds(num_ids)
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(teacher).get_vocab()
    if ours == theirs:
        return SharedIds(num_ids)
    if (mapped := mapped_ids(student, teacher)) is not None:
        return SharedIds(num_ids, mapped)
    differing = sum(theirs.get(token) != index for token, index in ours.items())
    raise InputError(
        f"teacher and student have different tokenizers: of the student's {len(ours)} tokens, "
        f"{differing} have another id or none among the teacher's {len(theirs)}; `distill` compares "
        "next-token distributions id by id, so both must use one tokenizer, or the student's must be the teacher's "
        "pruned by prune.vocab"
    )
