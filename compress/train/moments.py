"""What an optimizer whose moments are not in its parameters' dtype needs: to take them up as they were."""

from typing import Any

import torch
from torch import Tensor


def take_up(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Make an optimizer what `torch.optim.Optimizer.state_dict` returned, every tensor in the dtype it was kept in.

    torch's own loading converts moments to the parameters' dtype: rounded ones would grow to fp32, and 8-bit codes
    would no longer be codes. What the optimizer had is dropped first, so that no two sets of moments are there at
    once.
    """
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        assert len(group["params"]) == len(saved["params"]), "moments of another model"
        group.update({name: value for name, value in saved.items() if name != "params"})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in state["state"].items():
        device = parameters[index].device
        optimizer.state[parameters[index]] = {
            name: value.to(device, copy=True) if isinstance(value, Tensor) else value
            for name, value in kept.items()
        }
