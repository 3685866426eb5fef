"""Shrink the vocabulary: drop the tokens a corpus uses least, with their rows of the embedding and the output head.

The tokenizer is rewritten to match, so any text can still be read: what used a token that is gone is cut into the
tokens it was built from. Text that uses only tokens that stay is cut exactly as before, and on such text the logits
of the tokens that stay are the parent's. ``token_map.json`` in the result says which id was which.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.models.spec import read_spec
from compress.plugins import Context, DataRef, StepConfig
from compress.prune.planning import START_SECONDS, pruned_spec
from compress.prune.target import TOLERANCE, Budget, parse_budget
from compress.quantities import format_count
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 2
ACCEPTS = ("hf",)
PRODUCES = "hf"
REWRITES_TOKENIZER = True
"""Data for what is built on the result is tokenized with the result's own tokenizer."""

LARGEST_ALIGNMENT = 64


def _parse_tokens(value: object) -> int | str:
    try:
        return parse_budget(value)
    except ValueError as error:
        if isinstance(value, str) and value.strip().endswith("%"):
            raise
        raise ValueError("expected a number of tokens like 32k or 50000, or a share like 50%") from error


Tokens = Annotated[
    int | str,
    BeforeValidator(_parse_tokens),
    WithJsonSchema({"anyOf": [
        {"type": "number", "minimum": 1},
        {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT%]?$"},
    ]}),
    Field(examples=["50%", "32k"]),
]  # fmt: skip


class Target(StepConfig):
    """How small: a number of tokens, or of parameters."""

    tokens: Tokens | None = None
    """Tokens that stay: ``32k``, a whole number, or ``50%`` of the parent's. Rounded up to a multiple of `align`;
    every one is used: after the tokens that must stay come the most used ones."""
    params: Budget | None = None
    """``80%`` of the parent's parameters, ``4.0B``, ``350M`` or a whole number. The nearest aligned vocabulary is
    taken, at most 1 % above."""

    @model_validator(mode="after")
    def _either(self) -> "Target":
        if (self.params is None) == (self.tokens is None):
            raise ValueError("give either `tokens` or `params`")
        return self


SECONDS_PER_ID = 5e-5
"""To read a token with the merges that make it, to look for those that stay, and to write them: 14 s of 262,144 ids."""


class Config(StepConfig):
    """How to shrink a vocabulary."""

    target: Target
    """How small: ``{tokens: 32k}``, ``{tokens: 50%}`` or ``{params: 80%}``."""
    corpus: DataRef = "calibration"
    """The data whose tokens are counted. The more, and the more like what the model will read, the better: counting
    costs next to nothing."""
    min_count: int | None = Field(default=None, ge=1)
    """Never drop a token that the corpus uses at least so often; a target too small for them fails. Default: the
    target alone decides."""
    align: int | None = Field(default=None, ge=1)
    """What the number of tokens is a multiple of. Default: 64, less for vocabularies below 4096."""
    keep: tuple[str, ...] = ()
    """Tokens or texts to keep whatever the corpus says; of a text, all tokens it is cut into."""
    keep_special: Literal["used", "all"] = "used"
    """Which special tokens stay. ``used``: those that the corpus, the chat template or the settings of model and
    tokenizer name; names like ``<unused7>``, which nothing uses, go first. ``all``: every one."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the model with the smaller vocabulary. Raises `InputError` for an impossible target.

    The ids of its special tokens are not known yet: the prediction's configuration has the parent's.
    """
    before = layout(spec.config)
    return pruned_spec(spec, before.resized(vocab=_size(before, config)))


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of reading and writing the weights, one tensor in memory at a time."""
    after = predict(spec, config)
    largest = max(tensor.num_bytes for tensor in spec.tensors.values())
    return Work(
        peak_memory_bytes=2 * largest,
        disk_bytes=after.weight_bytes,
        disk_bytes_read=spec.weight_bytes,
        bytes_moved=spec.weight_bytes + after.weight_bytes,
        serial_seconds=START_SECONDS + SECONDS_PER_ID * int(spec.config.get("vocab_size") or 0),
        on_processor=True,
    )


def rehearse(config: Config) -> Config:
    """Return settings that drop nothing: the tiny model's tokenizer has a token a byte, and all must stay."""
    return config.model_copy(update={"target": Target(tokens="100%"), "min_count": None, "keep": ()})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Count the corpus' tokens, choose, and write model, tokenizer and ``token_map.json``.

    Raises `InputError` for a tokenizer that cannot be rewritten and for a corpus of another tokenizer, `StepFailed`
    where more tokens must stay than the target allows. Nothing to drop: the result is the parent's files.
    """
    from compress.prune.vocab_choice import choose
    from compress.prune.vocab_files import (
        copy_unchanged,
        count_tokens,
        read_vocabulary,
        write_without_dropped,
    )

    spec = read_spec(parent.path)
    before = layout(spec.config)
    after = before.resized(vocab=_size(before, config))
    if after.vocab == before.vocab:
        copy_unchanged(parent.path, context.folder)
        return Outcome(spec=read_spec(context.folder), facts={"tokens": before.vocab, "dropped_tokens": 0})
    counts = count_tokens(context.inputs["corpus"].path, before.vocab, context)
    vocabulary = read_vocabulary(parent.path, counts, config.keep, config.keep_special == "all")
    kept = choose(counts, vocabulary, after.vocab, config.min_count)
    write_without_dropped(parent.path, context, before, after, kept)
    used, stays = sum(counts), sum(counts[index] for index in kept)
    facts = {
        "tokens": after.vocab,
        "dropped_tokens": before.vocab - after.vocab,
        "corpus_tokens": used,
        "corpus_tokens_dropped": used - stays,
    }
    return Outcome(spec=read_spec(context.folder), facts=dict(facts))


def _size(before: Layout, config: Config) -> int:
    """Return the exact number of ids of the result."""
    align = config.align or min(LARGEST_ALIGNMENT, 1 << max(0, (before.vocab // 64).bit_length() - 1))
    if config.target.tokens is not None:
        return _for_tokens(config.target.tokens, before, align)
    assert config.target.params is not None
    return _for_parameters(config.target.params, before, align)


def _for_tokens(tokens: int | str, before: Layout, align: int) -> int:
    wanted = round(before.vocab * float(tokens[:-1]) / 100) if isinstance(tokens, str) else tokens
    if wanted > before.vocab:
        raise InputError(
            f"target of {wanted} tokens is more than the parent's {before.vocab}; pruning only removes"
        )
    return min(before.vocab, max(1, -(-wanted // align)) * align)


def _for_parameters(budget: int | str, before: Layout, align: int) -> int:
    parent = before.num_parameters
    wanted = round(parent * float(budget[:-1]) / 100) if isinstance(budget, str) else budget
    if wanted > parent:
        raise InputError(
            f"target of {format_count(wanted)} parameters is more than the parent's {format_count(parent)}; "
            "pruning only removes"
        )
    a_token = parent - before.resized(vocab=before.vocab - 1).num_parameters
    rest = parent - a_token * before.vocab
    choices = [*range(align, before.vocab, align), before.vocab]
    fitting = [size for size in choices if rest + a_token * size <= wanted * (1 + TOLERANCE)]
    if not fitting:
        raise InputError(
            f"target of {format_count(wanted)} parameters: without its vocabulary the model still has "
            f"{format_count(rest)}; raise the target, or use prune.width or prune.depth as well"
        )
    nearest: int = min(fitting, key=lambda size: abs(rest + a_token * size - wanted))
    return nearest
