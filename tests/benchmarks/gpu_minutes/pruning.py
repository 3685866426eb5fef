"""Pruning's own arithmetic: in which order the neurons of a real layer go, on the card and on the processor."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from compress.prune.elimination import elimination_costs
from gpu_minutes.scale import Scale, row


def pruning(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield the seconds one FFN of the original takes to order, and whether both devices order it alike."""
    width = scale.gram
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * width, width, generator=chance).to(scale.device)
    weight = torch.randn(max(8, width // 4), width, generator=chance).to(scale.device)
    gram, sensitivity = inputs.T @ inputs / len(inputs), weight.T @ weight
    del inputs
    orders = {}
    for device in {scale.device, "cpu"} if width <= 2048 else {scale.device}:
        started = time.perf_counter()
        costs = elimination_costs(gram.to(device), sensitivity.to(device), 1, 1e-4)
        orders[device] = costs.argsort()
        yield from row(f"elimination of {width} inputs on {device}", time.perf_counter() - started, "s")
    small = min(width, 1024)
    alike = [
        elimination_costs(
            gram[:small, :small].to(device), sensitivity[:small, :small].to(device), 1, 1e-4
        ).argsort()
        for device in (scale.device, "cpu")
    ]
    agreed = float((alike[0] == alike[1]).double().mean())
    yield from row("places in the order that agree", agreed, "share", n=small, goal=0.99, at_least=True)
