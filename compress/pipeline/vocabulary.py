"""How much of a model is its vocabulary: the rows of its embedding, and of its output head where that is another."""

from collections.abc import Iterator

from compress.quantities import format_file_size
from compress.records import ModelSpec, TensorSpec

LARGE_SHARE = 1 / 3
"""From here on the vocabulary is what decides a small model's size."""

MOSTLY = 1 / 2
"""From here on a result is mostly its vocabulary, whatever was done to its layers."""

PRUNES = "prune.vocab"
"""The step that shrinks it."""


def vocabulary_bytes(spec: ModelSpec) -> int:
    """Return the bytes of the tensors that have a row for every token."""
    return sum(tensor.num_bytes for tensor in _tables(spec))


def vocabulary_parameters(spec: ModelSpec) -> int:
    """Return the weights of a float model that stand in rows for tokens: embedding, and head where it is another."""
    return sum(tensor.num_elements for tensor in _tables(spec))


def vocabulary_remark(original: ModelSpec, uses: set[str]) -> list[str]:
    """Return a line on a vocabulary that makes up much of the original and that none of the steps `uses` shrinks."""
    share = vocabulary_bytes(original) / max(1, original.weight_bytes)
    if share <= LARGE_SHARE or PRUNES in uses:
        return []
    return [
        f"{share:.0%} of the original's bytes are its vocabulary ({original.config['vocab_size']:,} tokens), which no "
        f"step shrinks: {PRUNES} drops the tokens that a corpus hardly uses"
    ]


def size_remark(name: str, spec: ModelSpec, parent: str, before: ModelSpec, uses: set[str]) -> str | None:
    """Return a sentence on a file that is larger than what it is made from, or that is mostly its vocabulary.

    uses: the steps of the plan. `None` for every other file.
    """
    size, rows = spec.weight_bytes, vocabulary_bytes(spec)
    share, is_larger = rows / max(1, size), size > before.weight_bytes
    if not is_larger and share <= MOSTLY:
        return None
    said = f"'{name}' is {format_file_size(size)}"
    said += f", more than '{parent}' ({format_file_size(before.weight_bytes)}): " if is_larger else ": "
    if share <= LARGE_SHARE:
        return f"{said}its weights are kept in more bits; quantize before it is exported"
    dtypes = " and ".join(sorted({tensor.dtype for tensor in _tables(spec)}))
    fewer = f"fewer tokens in {PRUNES}" if PRUNES in uses else f"{PRUNES} before it"
    tokens = f"the rows of its {spec.config['vocab_size']:,} tokens, kept in {dtypes}"
    return f"{said}{format_file_size(rows)} of it are {tokens}; {fewer} would make it smaller"


def _tables(spec: ModelSpec) -> Iterator[TensorSpec]:
    vocab_size = spec.config.get("vocab_size")
    for tensor in spec.tensors.values():
        if len(tensor.shape) > 1 and vocab_size in (tensor.shape[0], tensor.shape[-1]):
            yield tensor
