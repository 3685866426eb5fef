"""One matrix that is embedding and output layer: its gradient, without a second one of its size.

The output layer's gradient has every row. That of the lookup has a few, of the tokens that were read; torch writes
them into a matrix of zeros as large as the first, and adds the two. Here they are added to the first where they belong.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def lookups_add_their_rows(student: PreTrainedModel) -> Iterator[None]:
    """Have lookups give the gradients of their rows alone, where these are added to an output layer's.

    For objectives that read the output matrix in each batch. A matrix that is only an embedding is left alone: no
    optimizer here takes single rows.
    """
    embedding, output = student.get_input_embeddings(), student.get_output_embeddings()
    tied = isinstance(embedding, nn.Embedding) and output is not None and output.weight is embedding.weight
    if not tied or embedding.max_norm is not None:
        yield
        return
    before, embedding.sparse = embedding.sparse, True
    try:
        yield
    finally:
        embedding.sparse = before
