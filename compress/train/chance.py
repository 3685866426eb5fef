"""The state of chance: what dropout will draw next."""

from typing import Any

import torch


def random_state(device: str) -> dict[str, Any]:
    """Return the generators' state of this process, on its processor and, where it computes on one, on its GPU."""
    on_gpu = torch.device(device).type == "cuda"
    return {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state() if on_gpu else None}


def set_random_state(state: dict[str, Any]) -> None:
    """Have the generators draw what they would have drawn when `random_state` returned this."""
    torch.set_rng_state(state["rng"])
    if state.get("cuda_rng") is not None:
        torch.cuda.set_rng_state(state["cuda_rng"])
