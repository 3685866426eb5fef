"""A language model small enough to know by heart: the next token depends on the last one alone."""

import torch

from compress.backends.interface import Backend


class BigramBackend(Backend):
    """Logits are the row of the last token in a table ``[V, V]``."""

    runtime = "table"
    num_positions = 32

    def __init__(self, table_VV: torch.Tensor) -> None:
        self.table_VV = table_VV
        self.vocabulary = table_VV.shape[1]
        self.rows = 0
        self.decoded = 0

    @classmethod
    def random(cls, vocabulary: int = 7, seed: int = 0, scale: float = 2.0) -> "BigramBackend":
        generator = torch.Generator().manual_seed(seed)
        return cls(scale * torch.randn(vocabulary, vocabulary, generator=generator))

    def logits_chunks(self, ids_BT, mask_BT, chunk=256):
        self.rows += len(ids_BT)
        for ids_BC in ids_BT.split(chunk, dim=1):
            yield self.table_VV[ids_BC]

    def prefill(self, ids_BT, mask_BT):
        return self.table_VV[ids_BT[:, -1]], "cache"

    def decode(self, ids_B1, mask_BS, cache):
        assert cache == "cache"
        self.decoded += 1
        return self.table_VV[ids_B1[:, 0]], cache
