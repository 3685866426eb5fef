"""The model to learn from: opened as it is stored, and known to speak the student's language."""

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from compress.errors import InputError
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.device import default_device
from compress.train.numerics import has_fast_bf16

TOKENIZER = "tokenizer.json"


def load_teacher(folder: Path, precision: Literal["auto", "bf16", "fp32"]) -> PreTrainedModel:
    """Return the teacher in the dtype it is stored in; in fp32 where that is asked for, or bf16 is slow."""
    fast = precision != "fp32" and has_fast_bf16(default_device())
    return load_model(folder, dtype=None if fast else torch.float32)


def check_same_tokenizer(student: Path, teacher: Path) -> int:
    """Return the number of ids of the tokenizer both folders hold. Raises `InputError` when they differ.

    Ids are what is compared: files may differ in what changes none, such as how a prompt is formatted.
    """
    tokenizer = load_tokenizer(student)
    files = [folder / TOKENIZER for folder in (student, teacher)]
    if not all(file.exists() for file in files) or files[0].read_bytes() != files[1].read_bytes():
        ours, theirs = tokenizer.get_vocab(), load_tokenizer(teacher).get_vocab()
        if ours != theirs:
            differing = sum(theirs.get(token) != index for token, index in ours.items())
            raise InputError(
                f"teacher and student have different tokenizers: of the student's {len(ours)} tokens, "
                f"{differing} have another id or none among the teacher's {len(theirs)}; `distill` compares "
                "next-token distributions id by id, so both must use one tokenizer"
            )
    num_ids: int = max(tokenizer.get_vocab().values()) + 1
    return num_ids
