"""AdamW whose two moments take 8 bits each: a quarter of their memory.

Every 256 values share a scale and are coded on a grid that is finest near zero. Of embeddings the moments stay in fp32:
most rows have no gradient in a step, and one large value would round its whole block to zero (Dettmers et al. 2022,
arXiv:2110.02861, §2.3).
"""

from typing import Any

import bitsandbytes
import torch

from compress.train.moments import take_up

REFERENCE = "arXiv:2110.02861"


class AdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
    """bitsandbytes' optimizer, whose groups may say ``optim_bits`` and whose state is taken up to the bit.

    Parameters with fewer than 4,096 values have their moments in fp32.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__([group for group in groups if group["params"]], lr=lr, betas=betas)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a parameter. bitsandbytes knows exceptions only by the addresses of parameters."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)
        return config | {"optim_bits": group.get("optim_bits", config["optim_bits"])}

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes up, as any other optimizer has it."""
        return torch.optim.Optimizer.state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Become what `state_dict` returned."""
        take_up(self, state_dict)
