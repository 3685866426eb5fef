"""AdamW whose two moments are kept in bf16: half of their memory.

Each step computes in fp32 and rounds what it keeps. A moment moves by ``1 − β`` of its distance to the new value;
below half a bf16 step (2⁻⁹ to 2⁻⁸ of it) it would not move at all. With β at most 0.98 (the settings refuse more) that
leaves the mean square within a fifth of where it would be, and what it divides by within a tenth; at 0.999 it would
never fall.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compress.train.moments import take_up

CHUNK = 2**24
"""Values that are computed at once: what is in fp32 then is small beside a large matrix."""


class AdamWBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with moments in `moment_dtype`. Sharded parameters have sharded moments."""

    moment_dtype = torch.bfloat16

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Become what `state_dict` returned."""
        take_up(self, state_dict)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=self.moment_dtype)
        state["step"] = (
            state["step"].cpu() + 1
        )  # on a GPU, where checkpoints are read to, reading it is waiting
        assert parameter.grad is not None
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        flat = [_own(tensor).view(-1) for tensor in tensors]
        for chunk in zip(*(torch.split(tensor, CHUNK) for tensor in flat), strict=True):
            _adamw(*chunk, step=float(state["step"]), **_numbers(group))


def _adamw(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Take a step in place, ``w −= lr · (λ w + m̂ / (√v̂ + ε))``."""
    wide_mean = mean.float().lerp_(grad, 1 - betas[0])
    wide_square = square.float().mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    mean.copy_(wide_mean)
    square.copy_(wide_square)
    divisor = wide_square.div_(1 - betas[1] ** step).sqrt_().add_(eps)
    weight.mul_(1 - lr * weight_decay)
    weight.addcdiv_(wide_mean, divisor, value=-lr / (1 - betas[0] ** step))


def _own(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
