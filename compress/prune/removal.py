"""Removing layers one by one, always the one whose absence changes the predictions least."""

from torch import Tensor

from compress.prune.calibration import Calibration
from compress.prune.judge import Judge


class LayerRemoval:
    """A model on a little text, the layers that are left, and the states that enter each of them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration, self._model = calibration, calibration.model
        self.left = list(range(calibration.layout.num_layers))
        self._judge = Judge(self._model, calibration.batches)
        self._run(self.left, [self._model.embed(ids) for ids in calibration.batches], remember=True)

    def remove_least(self) -> tuple[int, float]:
        """Remove a layer; return it and the mean divergence, in nats a token, from the whole model's predictions."""
        costs: dict[int, float] = {}
        for position, layer in enumerate(self.left):
            leaving = self._run(self.left[position + 1 :], self._entering(layer))
            costs[layer] = self._judge.divergence(self._model, leaving).divergence
        least = min(costs, key=lambda layer: costs[layer])
        position = self.left.index(least)
        self.left.remove(least)
        self._run(self.left[position:], self._entering(least), remember=True)
        removed, tokens = self._model.num_layers - len(self.left), self._calibration.num_tokens
        self._calibration.report(removed * tokens, (self._model.num_layers - 1) * tokens)
        return least, costs[least]

    def _entering(self, layer: int) -> list[Tensor]:
        """Return the room for the states that enter a layer."""
        calibration = self._calibration
        return calibration.scratch.states(
            f"entering-{layer}", calibration.batches, calibration.layout.hidden, self._model.dtype
        )

    def _run(self, layers: list[int], states: list[Tensor], remember: bool = False) -> list[Tensor]:
        for number in layers:
            if remember:
                for room, state in zip(self._entering(number), states, strict=True):
                    room.copy_(state)
            with self._model.layer(number):
                states = [self._model.run(number, state) for state in states]
        return states
