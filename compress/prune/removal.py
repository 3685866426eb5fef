"""Removing layers one by one, always the one whose absence changes the predictions least.

Of a large vocabulary most of the work would be logits: a layer of Gemma 3 270M has 5.6M weights, its head 168M. There
every candidate is first screened on a part of the rows and over the likeliest ids, and only the best few are judged by
whole predictions, at a sample of the positions of all rows. A small vocabulary is judged whole.

What a layer adds to the divergence changes little when another goes, and mostly grows. So candidates are tried in the
order of what they added last, and the rest are left when none of them can be the least any more: the lazy evaluation
of greedy choices (Minoux 1978), with room for additions that shrink.
"""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from compress.prune.calibration import Calibration
from compress.prune.judge import Judge, among
from compress.prune.screening import (
    FINALISTS,
    LEAST_SHARE,
    NUM_IDS,
    ROWS_SHARE,
    is_screened,
    judged_every,
    num_tried,
    rounds,
)


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
        self._additions = Additions()
        self._rounds = rounds(self._model.num_layers, calibration.layers_left)
        self._expected, self._num_tried = num_tried(self._rounds), 0
        self._run(self.left, [self._model.embed(ids) for ids in calibration.batches], remember=True)

    def remove_least(self) -> tuple[int, float]:
        """Remove a layer; return it and the mean divergence, in nats a token, from the whole model's predictions."""
        self._num_tried = 0
        costs = self._costs()
        least = min(costs, key=lambda layer: costs[layer])
        self._additions.gone(least)
        after = self._after(least)
        self.left.remove(least)
        self._run(after, self._entering(least), remember=True)
        return least, costs[least]

    def _costs(self) -> dict[int, float]:
        """Return the divergence without each layer that may be the one to go."""
        if not self._is_screened:
            return self._additions.tried(self.left, self._judged)
        finalists = self.left
        if len(self.left) > FINALISTS:
            screened = self._additions.tried(self.left, self._screened)
            finalists = sorted(screened, key=lambda layer: screened[layer])[:FINALISTS]
        return {layer: self._judged(layer) for layer in finalists}

    def _judged(self, layer: int) -> float:
        """Return the divergence without a layer, by whole predictions."""
        leaving = self._run(self._after(layer), self._entering(layer))
        found = self._judge.divergence(self._model, leaving).divergence
        self._tried()
        return found

    def _screened(self, layer: int) -> float:
        """Return about that, on a part of the rows and over the likeliest ids."""
        leaving = self._run(self._after(layer), self._some_rows(self._entering(layer)))
        with among(self._model, self._ids):
            found = self._screen.divergence(self._model, leaving).divergence
        self._tried()
        return found

    def _tried(self) -> None:
        """Say how far all rounds are; how many layers a round tries is known at its end."""
        self._num_tried += 1
        number = self._model.num_layers - len(self.left)
        expected = self._expected[number]
        if self._is_screened:
            expected = min(FINALISTS, len(self.left)) + (expected if len(self.left) > FINALISTS else 0)
        weights = [tried * n for tried, n in zip(self._expected, self._rounds, strict=True)]
        done = sum(weights[:number]) + weights[number] * min(1.0, self._num_tried / expected)
        total = self._calibration.num_tokens * len(self._rounds)
        self._calibration.report(total * done / sum(weights), total)

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


class Additions:
    """What each layer added to the divergence when it was last tried, beside that of all which had gone before."""

    def __init__(self) -> None:
        self._added: dict[int, float] = {}
        self._now = 0.0

    def tried(self, layers: Iterable[int], divergence: Callable[[int], float]) -> dict[int, float]:
        """Return the divergence without each layer that may be the least, and of `FINALISTS` at least.

        Those not tried before are tried first, the rest by what they added.
        """
        found: dict[int, float] = {}
        for layer in sorted(layers, key=lambda layer: self._added.get(layer, -1.0)):
            least = self._now + LEAST_SHARE * self._added[layer] if layer in self._added else 0.0
            if len(found) >= FINALISTS and least >= min(found.values()):
                break
            found[layer] = divergence(layer)
        self._added |= {layer: max(0.0, value - self._now) for layer, value in found.items()}
        return found

    def gone(self, layer: int) -> None:
        """Note that a layer went: from now on what others add is beside it."""
        self._now += self._added.pop(layer)
