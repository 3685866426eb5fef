"""Parents, data and contexts for the training steps."""

import json
from pathlib import Path

import torch

from compress import plugins
from compress.data.batch import Batch
from compress.data.tokenizer import Config as TokenizerConfig
from compress.machine import Card
from compress.models.checkpoint import quiet
from compress.models.spec import read_spec
from compress.records import Artifact, MemoryItem
from compress.train.memory_account import Conditions
from tests.fakes import FakeContext
from tests.models.tiny import tiny_model

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8}


CARD = Card(
    name="a card",
    memory_bytes=80 * 10**9,
    bf16_flops_per_second=1e15,
    memory_bytes_per_second=2e12,
    link_bytes_per_second=5e10,
)


def no_account(conditions: Conditions) -> tuple[MemoryItem, ...]:
    """For a training by one process: only a team divides by an account."""
    raise AssertionError("one process asked what a team's devices hold")


class InMemory:
    """Packed tokens without a file."""

    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids
        self.num_sequences, self.sequence_length = ids.shape

    def learning_batch(self, indices) -> Batch:
        return Batch(self._ids[list(indices)])


def countable_ids(num: int = 24, length: int = 16, vocabulary: int = 259) -> torch.Tensor:
    """Rows that count upwards from anywhere: a next token that can be learned."""
    starts = torch.randint(0, 40, (num, 1), generator=torch.Generator().manual_seed(3))
    return (starts + torch.arange(length)) % 56 % vocabulary


def tokens(folder: Path, ids: torch.Tensor | None = None) -> Artifact:
    ids = countable_ids() if ids is None else ids
    folder.mkdir(parents=True, exist_ok=True)
    ids.numpy().astype("<u2").tofile(folder / "tokens.bin")
    facts = {"num_sequences": len(ids), "sequence_length": ids.shape[1], "dtype": "<u2"}
    (folder / "tokens.json").write_text(json.dumps(facts))
    return Artifact(key="tokens", kind="tokens", path=folder)


def parent(
    folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes
) -> Artifact:
    """A small checkpoint with the byte tokenizer, whose 259 ids are the whole vocabulary."""
    with quiet():
        tiny_model(family, seed=seed, **{**SMALL, **changes}).to(dtype).save_pretrained(folder)
    plugins.internal("data.tokenizer").run(None, TokenizerConfig(kind="bytes"), FakeContext(folder))
    return Artifact(key=f"parent-{seed}", kind="hf", path=folder, spec=read_spec(folder))


def context(folder: Path, *, kind: type[FakeContext] = FakeContext, **inputs: Artifact) -> FakeContext:
    inputs = {"data": tokens(folder.with_name("tokens")), **inputs}
    return kind(folder, inputs=inputs, seed=7)


def payload(folder: Path) -> dict[str, bytes]:
    """The bytes a result is compared by."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
