"""What a CUDA graph does, on a processor: every operation of a step again, on the tensors it had.

Nothing of Python is repeated: a number that a step counted in Python stays as it was when the step was recorded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.backends.cuda_graph import check_graph_safe


class Recorded(TorchDispatchMode):
    """The operations of a block, and their repetition."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def last_of_width(self, width):
        """The last result with so many columns: the logits, as they are after the latest replay."""
        return next(
            result
            for *_, result in reversed(self.calls)
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (width,)
        )


def record(step):
    """Record a step that a CUDA graph could hold."""
    check_graph_safe(step)
    recorded = Recorded()
    with recorded:
        step()
    return recorded
