"""How much of a model is its vocabulary: the rows of its embedding, and of its output head where that is another."""

from collections.abc import Iterator

from compress.records import ModelSpec, TensorSpec

LARGE_SHARE = 1 / 3
"""From here on the vocabulary is what decides a small model's size."""

PRUNES = "prune.vocab"
"""The step that shrinks it."""


def vocabulary_bytes(spec: ModelSpec) -> int:
    """Return the bytes of the tensors that have a row for every token."""
    return sum(tensor.num_bytes for tensor in _tables(spec))


def vocabulary_parameters(spec: ModelSpec) -> int:
    """Return the weights of a float model that stand in rows for tokens: embedding, and head where it is another."""
    return sum(tensor.num_elements for tensor in _tables(spec))


def _tables(spec: ModelSpec) -> Iterator[TensorSpec]:
    vocab_size = spec.config.get("vocab_size")
    for tensor in spec.tensors.values():
        if len(tensor.shape) > 1 and tensor.shape[0] == vocab_size:
            yield tensor


def vocabulary_remark(original: ModelSpec, uses: set[str]) -> list[str]:
    """Return a line on a vocabulary that makes up much of the original and that none of the steps `uses` shrinks."""
    share = vocabulary_bytes(original) / max(1, original.weight_bytes)
    if share <= LARGE_SHARE or PRUNES in uses:
        return []
    return [
        f"{share:.0%} of the original's bytes are its vocabulary ({original.config['vocab_size']:,} tokens), which no "
        f"step shrinks: {PRUNES} drops the tokens that a corpus hardly uses"
    ]
