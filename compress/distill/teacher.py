"""The model to learn from: opened as it is stored, and known to speak the student's language."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from compress.errors import InputError
from compress.models.checkpoint import DTYPES, auto_class, load_tokenizer, quiet
from compress.models.device import default_device, has_fast_bf16
from compress.models.rounded import quiet_int8, unpack_where_unfit
from compress.models.spec import read_spec, stored_dtype
from compress.models.token_map import mapped_ids
from compress.models.tokenizer_json import FILE
from compress.train.distributed import load_at_leader

TeacherPrecision = Literal["auto", "bf16", "fp32", "int8", "nf4"]


def known_device(setting: str) -> str | None:
    """Return the device a setting names, ``None`` for ``auto``. Raises `InputError` for a GPU that is not there."""
    if setting == "auto":
        return None
    if setting == "offload":
        return setting
    name, _, index = setting.partition(":")
    num_there = torch.cuda.device_count()
    if name == "cuda" and int(index or 0) >= num_there:
        there = f"cuda:0 to cuda:{num_there - 1}" if num_there > 1 else "cuda:0" if num_there else "no GPU"
        raise InputError(
            f"teacher_device: {setting}: here is {there}. Allowed: auto, cpu, or a GPU that is there"
        )
    return setting


def load_teacher(
    folder: Path,
    precision: Literal["auto", "bf16", "fp32"],
    kept_in: TeacherPrecision = "auto",
    device: str | None = None,
) -> PreTrainedModel:
    """Return the teacher with its weights kept as asked, for a device: the default one without.

    ``auto`` is the dtype they are stored in, fp32 where `precision` says so or bf16 is slow. ``int8`` (LLM.int8) and
    ``nf4`` (QLoRA) round all linear layers but the head; the teacher is then on its device already. In a team only the
    leader holds weights of the others.
    """
    device = default_device() if device in (None, "offload") else device
    fast = precision != "fp32" and has_fast_bf16(torch.device(device).type)
    if kept_in in ("int8", "nf4"):
        return _rounded(folder, kept_in, torch.bfloat16 if fast else torch.float32, device)
    dtypes = {"auto": None if fast else torch.float32, "bf16": torch.bfloat16, "fp32": torch.float32}
    return load_at_leader(folder, dtype=dtypes[kept_in] or DTYPES[stored_dtype(read_spec(folder))])


def _rounded(folder: Path, kept_in: TeacherPrecision, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the teacher with weights rounded by bitsandbytes, on the device."""
    quiet_int8()
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kept_in == "int8"
        else BitsAndBytesConfig(load_in_4bit=True, **four)
    )
    with quiet():
        teacher: PreTrainedModel = auto_class(read_spec(folder).config).from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=settings,
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    if kept_in == "nf4":
        unpack_where_unfit(teacher)
    return teacher.eval()


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
