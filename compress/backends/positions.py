"""Where a token stands in its own sequence, whichever side the padding is on."""

from torch import Tensor


def positions(mask_BS: Tensor) -> Tensor:
    """Return each real token's place in its own sequence ``[B, S]``; padding gets 0 or repeats the last."""
    return (mask_BS.long().cumsum(-1) - 1).clamp(min=0)
