"""What a plan says of a vocabulary that makes up much of its model."""

import pytest

from compress.pipeline.vocabulary import size_remark, vocabulary_bytes, vocabulary_remark
from compress.records import ModelSpec, TensorSpec


def spec(vocab_size, tied=True):
    shapes = {"embed": (vocab_size, 64), "norm": (64,), "up": (160, 64), "down": (64, 160)}
    shapes |= {} if tied else {"head": (vocab_size, 64)}
    tensors = {name: TensorSpec(shape=shape, dtype="BF16") for name, shape in shapes.items()}
    return ModelSpec(config={"vocab_size": vocab_size}, tensors=tensors, num_parameters=1)


def test_the_bytes_of_a_vocabulary_are_those_of_embedding_and_head():
    assert vocabulary_bytes(spec(1000)) == 2 * 1000 * 64
    assert vocabulary_bytes(spec(1000, tied=False)) == 2 * 2 * 1000 * 64


@pytest.mark.parametrize(
    ("vocab_size", "tied", "is_said"), [(1000, True, True), (150, True, False), (150, False, True)]
)
def test_a_vocabulary_of_more_than_a_third_is_remarked_on(vocab_size, tied, is_said):
    said = vocabulary_remark(spec(vocab_size, tied), {"prune.width", "distill"})
    assert len(said) == is_said
    assert not is_said or f"({vocab_size:,} tokens)" in said[0]


def test_nothing_is_said_where_a_step_shrinks_it():
    assert vocabulary_remark(spec(1000), {"prune.vocab"}) == []


def grown(**dtypes):
    """The model of 1,000 tokens with some tensors kept in other numbers."""
    before = spec(1000)
    tensors = {
        name: tensor.model_copy(update={"dtype": dtypes.get(name, tensor.dtype)})
        for name, tensor in before.tensors.items()
    }
    return before.model_copy(update={"tensors": tensors})


@pytest.mark.parametrize(
    ("after", "uses", "said"),
    [
        (grown(embed="F32"), set(),
         "'edge' is 297 kB, more than 'int4' (169 kB): 256 kB of it are the rows of its 1,000 tokens, kept in F32; "
         "prune.vocab before it would make it smaller"),
        (grown(), {"prune.vocab"},
         "'edge' is 169 kB: 128 kB of it are the rows of its 1,000 tokens, kept in BF16; "
         "fewer tokens in prune.vocab would make it smaller"),
    ],
)  # fmt: skip
def test_a_larger_file_or_one_of_rows_for_tokens_is_remarked_on(after, uses, said):
    assert size_remark("edge", after, "int4", spec(1000), uses) == said


def test_of_a_smaller_file_nothing_is_said():
    assert size_remark("edge", spec(150), "int4", spec(1000), set()) is None
