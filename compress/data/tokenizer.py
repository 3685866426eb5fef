"""The two tokenizers made here: the demo world's own BPE, and plain bytes for rehearsals.

Both are ordinary ``tokenizer.json`` folders that ``AutoTokenizer`` reads, put BOS before a text as Llama's
does, and turn any text into ids and back without loss (every byte is in the vocabulary).
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.data import world
from compress.plugins import Context, StepConfig
from compress.records import Artifact, ModelSpec, Outcome, Work

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = world.VERSION
ACCEPTS: tuple[str, ...] = ()
PRODUCES = "tokenizer"
COMPUTES = False

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL = (BOS, EOS, PAD)
"""Ids 0, 1 and 2 of both tokenizers."""
TRAINING_DOCUMENTS = 4000


class Config(StepConfig):
    """Which tokenizer to make."""

    kind: Literal["demo", "bytes"] = "demo"
    """``demo``: BPE trained on the demo world. ``bytes``: one id a byte, no merges (259 ids)."""
    vocabulary: int = Field(default=1024, ge=259)
    """Number of ids of the demo tokenizer, special tokens included. ``bytes`` ignores it."""


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Merges are learned from a few thousand texts in a second."""
    return Work(serial_seconds=1.0 if config.kind == "demo" else 0.1, on_processor=True)


def run(parent: Artifact | None, config: Config, context: Context) -> Outcome:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; the same settings give the same bytes."""
    tokenizer = _demo(config.vocabulary) if config.kind == "demo" else _bytes()
    save(tokenizer, context.folder)
    return Outcome(facts={"vocabulary": tokenizer.get_vocab_size(), "tokenizer": config.kind})


def save(tokenizer: "Tokenizer", folder: Path) -> None:
    """Write a tokenizer as the two files `AutoTokenizer` reads."""
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        # Never met, since every byte has an id; a Qwen2 folder would add its own otherwise.
        "unk_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _demo(vocabulary: int) -> "Tokenizer":
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=_alphabet(), show_progress=False
    )
    texts = islice(world.documents("train", seed=0), TRAINING_DOCUMENTS)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _bytes() -> "Tokenizer":
    from tokenizers import Tokenizer, models

    vocabulary = {symbol: index for index, symbol in enumerate([*SPECIAL, *_alphabet()])}
    tokenizer = _byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _alphabet() -> list[str]:
    """The 256 printable stand-ins that byte-level tokenizers write for bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level(tokenizer: "Tokenizer") -> "Tokenizer":
    from tokenizers import decoders, pre_tokenizers, processors

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    return tokenizer
