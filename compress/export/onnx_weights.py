"""A parent's tensors as its graph holds them, read and converted one at a time.

N outputs, K inputs; G groups of inputs that share a scale in the parent, B blocks that do in the graph; W words.
"""

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from compress.models.shards import read_shards
from compress.quantize.grouped import pack, quantize
from compress.records import ModelSpec

Array = NDArray[Any]


class Weights(ExitStack):
    """The weights of `result`, by their names in the graph, from the checkpoint in `folder`."""

    def __init__(self, folder: Path, result: ModelSpec, bits: int, transposed: Collection[str]) -> None:
        super().__init__()
        self.result, self.bits, self.transposed = result, bits, transposed
        self._files: dict[str, Any] = {}
        for file, tensors in read_shards(folder).items():
            opened = self.enter_context(safe_open(folder / file, framework="pt"))
            self._files |= dict.fromkeys(tensors, opened)

    def load(self, name: str) -> Array:
        """Return one weight: floats in fp32, integers as bytes ``[N, B, bytes]``, scales ``[N, B]``."""
        shape = self.result.tensors[name].shape
        if name.endswith("_packed"):
            return self._words(name, num_blocks=shape[1]).view(torch.uint8).reshape(shape).numpy()
        if name.endswith("_scale"):
            return self._scales(name, num_blocks=shape[1]).numpy()
        weight = self._read(name).float()
        return (weight.T.contiguous() if name in self.transposed else weight).numpy()

    def _words(self, name: str, num_blocks: int) -> Tensor:
        if name in self._files:
            # The same bits: both layouts store value + 2^(bits-1), lowest bits first, along the inputs.
            return self._read(name)
        integers_NK, _ = self._rounded(name.removesuffix("_packed"), num_blocks)
        return pack(integers_NK, self.bits)

    def _scales(self, name: str, num_blocks: int) -> Tensor:
        if name in self._files:
            scale_NG = self._read(name).float()
            return scale_NG.repeat_interleave(num_blocks // scale_NG.shape[1], dim=1)
        return self._rounded(name.removesuffix("_scale"), num_blocks)[1]

    def _rounded(self, name: str, num_blocks: int) -> tuple[Tensor, Tensor]:
        weight_NK = self._read(name).float()
        return quantize(weight_NK, self.bits, weight_NK.shape[1] // num_blocks)

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor
