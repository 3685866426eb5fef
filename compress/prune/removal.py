"""Removing layers one by one, always the one whose absence changes the predictions least."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.prune.calibration import Calibration


class LayerRemoval:
    """A model on a little text, the layers that are left, and the states that enter each of them."""

    def __init__(self, calibration: Calibration, tokens: int) -> None:
        self._model, self._report = calibration.model, calibration.report
        self._batches = _first(calibration.batches, tokens)
        self.left = list(range(calibration.layout.num_layers))
        calibration_states = [self._model.embed(ids) for ids in self._batches]
        self._entering: dict[int, list[Tensor]] = {}
        leaving = self._run(self.left, calibration_states, remember=True)
        self._whole = [self._log_probs(ids, h) for ids, h in zip(self._batches, leaving, strict=True)]
        self._rounds_left = len(self.left) - 1

    def remove_least(self) -> tuple[int, float]:
        """Remove a layer; return it and the mean divergence, in nats a token, from the whole model's predictions."""
        costs: dict[int, float] = {}
        for position, layer in enumerate(self.left):
            leaving = self._run(self.left[position + 1 :], self._entering[layer])
            costs[layer] = self._divergence(leaving)
        least = min(costs, key=lambda layer: costs[layer])
        position = self.left.index(least)
        entering = self._entering.pop(least)
        self.left.remove(least)
        self._run(self.left[position:], entering, remember=True)
        self._report(1 - len(self.left) / len(self._model.layout.layers), 1)
        return least, costs[least]

    def _run(self, layers: list[int], states: list[Tensor], remember: bool = False) -> list[Tensor]:
        for number in layers:
            if remember:
                self._entering[number] = states
            with self._model.layer(number):
                states = [self._model.run(number, state) for state in states]
        return states

    def _divergence(self, leaving: list[Tensor]) -> float:
        total, count = 0.0, 0
        for ids, state, whole_BTV in zip(self._batches, leaving, self._whole, strict=True):
            log_probs_BTV = self._log_probs(ids, state)
            total += float((whole_BTV.exp() * (whole_BTV - log_probs_BTV)).sum(-1).double().sum())
            count += ids.numel()
        return total / count

    def _log_probs(self, ids: Tensor, state: Tensor) -> Tensor:
        logits_BTV = self._model.logits(ids, state)
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)).log_softmax(-1)


def _first(batches: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Return whole batches until there are about so many tokens; the last one cut by sequences."""
    chosen: list[Tensor] = []
    for ids in batches:
        rows = min(len(ids), max(1, -(-tokens // ids.shape[1])))
        chosen.append(ids[:rows])
        tokens -= chosen[-1].numel()
        if tokens <= 0:
            break
    return chosen
