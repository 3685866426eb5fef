"""The models that are pruned: four, of two families, each trained here on a text of its own.

`code` and `prose` are for development; `world` and `headers` are held out: nothing is ever chosen by them. A
teacher's folder holds a tokenizer, a checkpoint and the packed tokens of its splits; the same environment
gives the same folder.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from compress.data.tokenizer import BOS, EOS, SPECIAL, save
from compress.data.tokens import PackedTokens

from . import texts

VERSION = 1
"""Raised when a teacher becomes another one."""
VOCABULARY = 2048
LENGTH = 128
TOKENS = {"train": 3_072_000, "calibration": 131_072, "recovery": 393_216}
HELDOUT_DOCUMENTS, ROWS_PER_DOCUMENT = 96, 4
TRAINING = {
    "tokens": TOKENS["train"],
    "batch_tokens": 16 * LENGTH,
    "micro_batch": 16,
    "learning_rate": 2e-3,
    "warmup": 0.05,
    "floor": 0.02,
    "checkpoint_seconds": 60.0,
}
AT_A_TIME = 2


@dataclass(frozen=True)
class Teacher:
    """A teacher's text and shape."""

    text: str
    family: str
    tied: bool
    held_out: bool
    shape: dict[str, int] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Return its Hugging Face configuration."""
        return {
            "model_type": self.family,
            "architectures": [{"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[self.family]],
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
            **self.shape,
            "max_position_embeddings": 256,
            "initializer_range": 0.04,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        home = Path(os.environ.get("COMPRESS_HOME") or Path.home() / ".cache" / "compress")
        return home / "benchmarks" / f"teachers-v{VERSION}" / self.text

    @property
    def model(self) -> Path:
        """Return the checkpoint's folder, tokenizer included."""
        return self.folder / "model"

    def tokens(self, split: texts.Split) -> Path:
        """Return the folder of a split's packed rows."""
        return self.folder / split

    @property
    def exists(self) -> bool:
        return (self.folder / "trained.json").is_file()


TEACHERS = {
    teacher.text: teacher
    for teacher in (
        Teacher("code", "llama", tied=True, held_out=False),
        Teacher("prose", "qwen3", tied=False, held_out=False),
        Teacher(
            "world", "qwen3", tied=True, held_out=True, shape={"hidden_size": 224, "num_hidden_layers": 10}
        ),
        Teacher(
            "headers",
            "llama",
            tied=False,
            held_out=True,
            shape={"intermediate_size": 1024, "num_hidden_layers": 6},
        ),
    )
}


def make_all(names: Iterable[str], script: Path) -> None:
    """Train the named teachers that are missing, `AT_A_TIME` with one thread each."""
    waiting = [name for name in names if not TEACHERS[name].exists]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < AT_A_TIME:
            command = [sys.executable, str(script), "teachers", "--only", waiting.pop(0)]
            running.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
        done = running.pop(0)
        if done.wait() != 0:
            raise SystemExit(f"{' '.join(map(str, done.args))} failed")  # type: ignore[arg-type]


def make(teacher: Teacher) -> None:
    """Write a teacher's tokenizer, tokens and weights, continuing where an earlier call was stopped."""
    from .steps import run_step

    teacher.folder.mkdir(parents=True, exist_ok=True)
    if not (teacher.folder / "texts.json").is_file():
        _write_texts(teacher)
    blank, started = teacher.folder / "blank", time.monotonic()
    source = teacher.folder / "tokenizer"
    run_step("train.initialize", source, blank, {"config": teacher.config}, seed=1, kind="tokenizer")
    data = {"data": teacher.tokens("train")}
    facts = run_step("train", blank, teacher.model, TRAINING, seed=1, inputs=data, say=teacher.text)
    facts["wall_seconds"] = time.monotonic() - started
    (teacher.folder / "trained.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_texts(teacher: Teacher) -> None:
    """Train the tokenizer on the teacher's training text and pack every split with it."""
    found = {split: [body for _, body in texts.documents(teacher.text, split)] for split in texts.SPLITS}
    folder = teacher.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer = _train_tokenizer(found["train"])
    save(tokenizer, folder)
    sizes: dict[str, Any] = {"characters": {split: sum(map(len, bodies)) for split, bodies in found.items()}}
    for split, wanted in TOKENS.items():
        rows = _stream(tokenizer, found[split], wanted)
        sizes[split] = _write_rows(teacher.tokens(split), rows)
    sizes["heldout"] = _write_rows(teacher.tokens("heldout"), _windows(tokenizer, found["heldout"]))
    (teacher.folder / "texts.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def _train_tokenizer(bodies: list[str]) -> Tokenizer:
    """Return a byte-level BPE as `compress.data.tokenizer` makes them, of this text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(bodies[:4000], trainer)
    return tokenizer


def _encoded(tokenizer: Tokenizer, bodies: Iterable[str]) -> Iterator[list[int]]:
    bos, eos = SPECIAL.index(BOS), SPECIAL.index(EOS)
    for body in bodies:
        yield [bos, *tokenizer.encode(body, add_special_tokens=False).ids, eos]


def _stream(tokenizer: Tokenizer, bodies: list[str], wanted: int) -> np.ndarray[Any, Any]:
    """Return documents joined and cut into rows: ``[wanted / LENGTH or fewer, LENGTH]``."""
    ids: list[int] = []
    for document in _encoded(tokenizer, bodies):
        ids += document
        if len(ids) >= wanted:
            break
    num_rows = min(len(ids), wanted) // LENGTH
    return np.array(ids[: num_rows * LENGTH]).reshape(num_rows, LENGTH)


def _windows(tokenizer: Tokenizer, bodies: list[str]) -> np.ndarray[Any, Any]:
    """Return `ROWS_PER_DOCUMENT` rows of one place in every document, short documents being joined first."""
    r, size, joined = Random(0), ROWS_PER_DOCUMENT * LENGTH, list[int]()
    rows: list[list[int]] = []
    for document in _encoded(tokenizer, bodies):
        joined += document
        if len(joined) >= size and len(rows) < HELDOUT_DOCUMENTS:
            start = r.randrange(len(joined) - size + 1)
            rows.append(joined[start : start + size])
            joined = []
    return np.array(rows).reshape(-1, LENGTH)


def _write_rows(folder: Path, rows: np.ndarray[Any, Any]) -> int:
    """Write rows as `compress.data.tokens` reads them; return how many tokens they are."""
    folder.mkdir(exist_ok=True)
    (folder / "tokens.bin").write_bytes(rows.astype("<u2").tobytes())
    facts = {"num_sequences": len(rows), "sequence_length": LENGTH, "dtype": "<u2"}
    (folder / "tokens.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return int(PackedTokens.open(folder).num_sequences) * LENGTH
