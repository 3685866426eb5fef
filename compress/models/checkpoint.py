"""Opening and writing checkpoints with transformers: safetensors only, none of its code, no network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from compress.errors import InputError, StepFailed
from compress.models.rounded import unpack_where_unfit
from compress.models.spec import copy_tokenizer, has_same_tokenizer, read_config, read_spec, stored_dtype
from compress.models.task import class_of, in_words, task_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's dtypes by their safetensors names."""


def load_model(folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> PreTrainedModel:
    """Return the model in a folder, in eval mode, with weights in `dtype` (``None``: as stored).

    Raises `InputError` when files are missing or broken, `StepFailed` when transformers cannot use them all.
    """
    spec = read_spec(folder)
    with quiet():
        model, info = auto_class(spec.config).from_pretrained(
            folder,
            dtype=dtype or DTYPES[stored_dtype(spec)],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    _check_loaded(folder, model, info)
    model = model.to(device).eval()
    if getattr(model, "is_loaded_in_4bit", False):
        unpack_where_unfit(model)
    return model


def outline_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model that `load_model` gives, in eval mode, its parameters without memory or values (meta).

    No weight is read. Buffers are there: they follow from the configuration.
    """
    with quiet(), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: PreTrainedModel = auto_class(read_config(folder)).from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def auto_class(config: dict[str, Any]) -> Any:
    """Return transformers' auto class for what a configuration is. Raises `InputError` for what is not opened here."""
    match task_of(config):
        case "masked-lm":
            return AutoModelForMaskedLM
        case "encoder":
            return AutoModel
        case "classifier":
            of_tokens = (class_of(config) or "").endswith("TokenClassification")
            return AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
        case "other" if class_of(config) is not None:
            raise InputError(f"this model is {in_words(config)}, which cannot be opened here")
    return AutoModelForCausalLM


def save_model(model: PreTrainedModel, folder: Path, *, like: Path) -> None:
    """Write the model in the dtype it has, its configuration, and the tokenizer files of folder `like`."""
    with quiet():
        model.save_pretrained(folder)
    copy_tokenizer(like, folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder. Raises `InputError` when there is none that transformers can read."""
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} has no tokenizer transformers can read: {error}") from error
    return tokenizer


def load_tokenizers(first: Path, second: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Return the tokenizers of two folders, one for both where they are the same: 262,144 ids take seconds to read."""
    tokenizer = load_tokenizer(first)
    return tokenizer, tokenizer if has_same_tokenizer(first, second) else load_tokenizer(second)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and logging advice over our own output."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_loaded(folder: Path, model: PreTrainedModel, info: dict[str, set[str]]) -> None:
    if problems := {problem: sorted(map(str, names))[:3] for problem, names in info.items() if names}:
        raise StepFailed(f"transformers could not load {folder} completely: {problems}")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        raise InputError(
            f"{folder}: config.json ties the output head to the embedding, but another weight of the head is "
            "stored; set tie_word_embeddings to false or remove it"
        )
