"""Cache a teacher: its distributions over the data's next tokens, computed once for all students and all epochs.

What is kept of each is exact where it matters and honest about the rest (`compress.distill.targets`), in about 130
bytes a token (`compress.distill.coding`). The teacher is the parent; no student is in the key.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from compress.models.effort import opening, reading
from compress.plugins import Context, DataRef, StepConfig
from compress.quantities import Count
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 3
ACCEPTS = ("hf",)
PRODUCES = "teacher_signals"
INTERNAL = True

BYTES_PER_TOKEN = 130
"""About what a token takes with the default settings and a vocabulary of 128k."""
PASSES_OVER_LOGITS = 15
BATCH_TOKENS = 4096
HELD_OUT_BYTES_PER_TOKEN = 250
"""The same of a token of held-out text."""


class CacheSettings(StepConfig):
    """What is kept of each of the teacher's distributions."""

    top_k: int = Field(default=24, ge=1, le=65_535)
    """How many of the likeliest tokens keep their own probability."""
    tail: Literal["bucket", "sampled"] = "sampled"
    """What is kept of all others: in a ``bucket`` their mass as one outcome, which takes 50 bytes less but never tells
    which of them are likelier; ``sampled``, a few of them too, such that the expected gradient is that of the whole
    distribution."""
    samples: int = Field(default=16, ge=1, le=65_535)
    """How many tokens ``sampled`` draws."""


HELD_OUT = CacheSettings(top_k=24, tail="sampled", samples=64)
"""What is kept of held-out text, whatever is kept for training, so that all students are measured alike. It takes 250
bytes a token, and a KL is right to 0.3 % on 4,000 tokens (0.4 % with 16 samples, while a bucket alone reads 6 to 33 %
too low), or to 3e-5 nats where it is smaller than that: 8 bits a probability tell no closer models apart."""


class Config(CacheSettings):
    """What is kept, of what data, and how it is computed."""

    data: DataRef = "recovery"
    """The data whose tokens are predicted."""
    tokens: Count | None
    """How many tokens will be trained on: rows that are not reached are left out. ``None``: all rows are reached."""
    batch_tokens: Count | None = None
    """The tokens of a batch, to which `tokens` is rounded."""
    first_rows: int | None = Field(default=None, ge=1)
    """Instead of rows to train on: so many from the beginning of the data, or all where there are fewer."""
    most_tokens: int = 0
    """Where `tokens` is ``None``: how many tokens that is at most."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by."""
    attend_across_documents: bool = False
    """Whether a text packed into a row sees the ones before it."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What matrices are multiplied in."""
    teacher_precision: Literal["auto", "bf16", "fp32", "int8", "nf4"] = "auto"
    """What the teacher's weights are kept in."""


OF_TRAINING = tuple(
    name
    for name in Config.model_fields
    if name not in {*CacheSettings.model_fields, "first_rows", "most_tokens"}
)
"""The settings that must be those of the training that reads the cache."""


def settle(config: Config, num_tokens: Mapping[str, int]) -> Config:
    """Return the settings that all trainings share which read all of the data, or look at the same rows."""
    if config.first_rows is not None:
        return config.model_copy(update={"most_tokens": num_tokens.get("data", 0)})
    if config.tokens is None or config.tokens < (there := num_tokens.get("data", config.tokens + 1)):
        return config
    return config.model_copy(update={"tokens": None, "batch_tokens": None, "most_tokens": there})


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what one pass over the data takes; for data of unknown length, if `tokens` is no more than that.

    Of first rows only, it is at most that: how long a row is cannot be seen here.
    """
    tokens = config.tokens or config.most_tokens
    read = opening(spec).plus(reading(spec, tokens, BATCH_TOKENS))
    # Each distribution is sorted out once: the likeliest ids, and a few drawn among the others.
    logits = tokens * PASSES_OVER_LOGITS * 4.0 * int(spec.config.get("vocab_size") or 0)
    beside = Work(
        bytes_moved=logits,
        peak_memory_bytes=500 * 2**20 + spec.weight_bytes,
        disk_bytes=(BYTES_PER_TOKEN if config.first_rows is None else HELD_OUT_BYTES_PER_TOKEN) * tokens,
    )
    return read.plus(beside)


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the signals of every row that will be read.

    Raises `InputError` for a teacher that makes its logits in an unknown way.
    """
    from compress.distill.caching import write_signals

    return Outcome(facts=write_signals(parent.path, config, context))
