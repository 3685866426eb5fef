"""Removing layers one by one, always the one whose absence changes the predictions least.

Of a large vocabulary most of the work would be logits: a layer of Gemma 3 270M has 5.6M weights, its head 168M. There
every candidate is first screened on a part of the rows and over the likeliest ids, and only the best few are judged by
whole predictions, at a sample of the positions of all rows. A small vocabulary is judged whole.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from compress.prune.calibration import Calibration
from compress.prune.judge import Judge, among
from compress.prune.screening import FINALISTS, NUM_IDS, ROWS_SHARE, is_screened, judged_every


class LayerRemoval:
    """A model on a little text, the layers that are left, and the states that enter each of them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration, self._model = calibration, calibration.model
        self.left = list(range(calibration.layout.num_layers))
        vocabulary = calibration.layout.vocab
        is_linear = isinstance(self._model.model.get_output_embeddings(), nn.Linear)
        self._is_screened = is_screened(vocabulary) and is_linear
        every = judged_every(vocabulary, calibration.num_tokens) if self._is_screened else 1
        self._judge = Judge(self._model, calibration.batches, every=every)
        if self._is_screened:
            some = self._some_rows(calibration.batches)
            for ids in some:
                self._model.embed(ids)  # notes how layers are called for batches of this shape
            self._ids = self._judge.likeliest_ids(NUM_IDS)
            self._screen = Judge(self._model, some)
        self._run(self.left, [self._model.embed(ids) for ids in calibration.batches], remember=True)

    def remove_least(self) -> tuple[int, float]:
        """Remove a layer; return it and the mean divergence, in nats a token, from the whole model's predictions."""
        judged = self._finalists()
        num_before = len(self.left) if len(judged) < len(self.left) else 0
        costs: dict[int, float] = {}
        for layer in judged:
            leaving = self._run(self._after(layer), self._entering(layer))
            costs[layer] = self._judge.divergence(self._model, leaving).divergence
            self._report((num_before + len(costs)) / (num_before + len(judged)))
        least = min(costs, key=lambda layer: costs[layer])
        after = self._after(least)
        self.left.remove(least)
        self._run(after, self._entering(least), remember=True)
        return least, costs[least]

    def _finalists(self) -> list[int]:
        """Return the layers left that may be the one to go: all, or those that a screening leaves."""
        if not self._is_screened or len(self.left) <= FINALISTS:
            return self.left
        costs: dict[int, float] = {}
        for layer in self.left:
            leaving = self._run(self._after(layer), self._some_rows(self._entering(layer)))
            with among(self._model, self._ids):
                costs[layer] = self._screen.divergence(self._model, leaving).divergence
            self._report(len(costs) / (len(self.left) + FINALISTS))
        return sorted(sorted(costs, key=lambda layer: costs[layer])[:FINALISTS])

    def _report(self, share: float) -> None:
        """Say how far all rounds are: one with n layers left takes about n² of the time."""
        rounds = [n**2 for n in range(2, self._model.num_layers + 1)]
        now = len(self.left)
        done = sum(n**2 for n in range(now + 1, self._model.num_layers + 1)) + share * now**2
        total = self._calibration.num_tokens * (self._model.num_layers - 1)
        self._calibration.report(total * done / sum(rounds), total)

    def _after(self, layer: int) -> list[int]:
        return self.left[self.left.index(layer) + 1 :]

    def _some_rows(self, batches: Sequence[Tensor]) -> list[Tensor]:
        return [batch[: -(-len(batch) // ROWS_SHARE)] for batch in batches]

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
