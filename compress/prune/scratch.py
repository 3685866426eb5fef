"""Room for hidden states between layers: in memory, or in a file that the system may write out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class Scratch:
    """Gives tensors for hidden states, one a batch; asking again under the same name gives the same room.

    With a folder they lie in mapped files there, so that long calibration text needs disk instead of memory.
    """

    def __init__(self, folder: Path | None, device: str = "cpu") -> None:
        self._folder, self._device = folder, device
        self._rooms: dict[str, list[Tensor]] = {}

    def states(self, name: str, batches: Sequence[Tensor], width: int, dtype: torch.dtype) -> list[Tensor]:
        """Return a tensor ``[B, T, width]`` for every batch of token ids ``[B, T]``."""
        if name not in self._rooms:
            sizes = [ids.numel() * width for ids in batches]
            whole = self._allocate(name, sum(sizes), dtype)
            parts: tuple[Tensor, ...] = torch.split(whole, sizes)
            self._rooms[name] = [p.view(*ids.shape, width) for p, ids in zip(parts, batches, strict=True)]
        return self._rooms[name]

    def _allocate(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        if self._folder is None:
            return torch.empty(count, dtype=dtype, device=self._device)
        path = self._folder / f"{name}.states"
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype)
