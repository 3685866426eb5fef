"""Train each layer of the student by itself to end where the parent's ends: block reconstruction.

Least squares (`compensation`) finds the best linear maps for the units that stay, one map after the other. What a unit
computes before its nonlinearity, and what a norm does after a map, they do not change. Here all weights of a layer
follow the gradient of the distance between the student's hidden state after the layer and the parent's, on calibration
text. One layer at a time: there is no loss of the whole model, no head, and memory for one layer's gradients only.

BRECQ does this for quantized weights (arXiv 2102.05426), Puzzle for replaced blocks (arXiv 2411.19146, "blockwise local
distillation").

A token counts by its error relative to its own hidden state, since the norms before later maps divide by that; a
channel by how much of it those norms let through, since a hidden state may hold huge channels that little reads.

Shapes: B sequences of a batch, T tokens, H hidden channels of the student.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.models.determinism import in_one_order
from compress.models.layerwise import LayerwiseModel, Weights, assign, separate_experts
from compress.prune.planning import RECONSTRUCTION_TOKENS

JUDGED = 8
"""Of so many sequences one is kept to judge by: a layer that is no nearer on those stays as it was."""


@dataclass(frozen=True)
class Recipe:
    """How to follow the gradient (Adam). Near what was tried in ``tests/benchmarks/LOG.md``, not tuned."""

    steps: int
    rate: float = 0.015
    """Learning rate as a share of a tensor's root mean square: what is a small change depends on its weights."""
    least: float = 0.01
    """A root mean square below this counts as this: biases and gains may begin at zero."""
    warmup: int = 10
    betas: tuple[float, float] = (0.9, 0.99)


Place = tuple[int, int]
"""A sequence: its batch, and its row there."""


@dataclass(frozen=True)
class Passage:
    """A layer, and the text before and behind it.

    layer: the student's live layer. before: the student's hidden states, ``[B, T, H]`` a batch. wanted: the parent's
    behind it, of which `channels` are the student's, ``[H]``. worth: how much an error in each counts, ``[H]``.
    """

    number: int
    layer: nn.Module
    before: Sequence[Tensor]
    wanted: Sequence[Tensor]
    channels: Tensor
    worth: Tensor


class Reconstruction:
    """The layers of a student, each to be trained while the text stands before it."""

    def __init__(
        self,
        student: LayerwiseModel,
        batches: Sequence[Tensor],
        recipe: Recipe,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        """heed: called between steps, and may raise to stop; the layer is then trained anew."""
        self._student, self._recipe, self._heed = student, recipe, heed
        self.num_trained = self.num_nearer = 0
        places = [(batch, row) for batch, ids in enumerate(batches) for row in range(len(ids))]
        self._judged = places[::JUDGED]
        self._learned = [place for number, place in enumerate(places) if number % JUDGED]
        length = batches[0].shape[1]
        self._at_once = min(max(1, RECONSTRUCTION_TOKENS // length), max(1, len(self._learned)))
        for count in {1, self._at_once}:
            student.embed(batches[0][:1].expand(count, length))  # notes how layers are called for so many

    @property
    def has_enough_text(self) -> bool:
        """Whether there is a sequence to learn from beside that which is judged by."""
        return bool(self._learned)

    def improve(self, passage: Passage, weights: Weights) -> Weights:
        """Return a layer's weights, trained, or as they are where that brings nothing. The live layer gets them.

        weights: all of the layer, by their stored names in the student, whose live layer has them.
        """
        if not self.has_enough_text or not self._recipe.steps:
            return weights
        error = self._judge(passage)
        trained = in_one_order(self._student.device, lambda: self._train(passage, weights))
        self.num_trained += 1
        self._student.assign(passage.number, trained)
        if self._judge(passage) < error:
            self.num_nearer += 1
            return trained
        self._student.assign(passage.number, weights)
        return weights

    def _train(self, passage: Passage, weights: Weights) -> Weights:
        recipe, chance = self._recipe, torch.Generator().manual_seed(passage.number)
        with self._trainable(passage, weights) as parameters:
            groups = [{"params": [each], "scale": self._scale(each)} for each in parameters.values()]
            optimizer = torch.optim.Adam(groups, betas=recipe.betas)
            for step in range(recipe.steps):
                self._heed()
                for group in optimizer.param_groups:
                    group["lr"] = group["scale"] * self._share(step)
                chosen = torch.randperm(len(self._learned), generator=chance)[: self._at_once].tolist()
                optimizer.zero_grad()
                torch.autograd.backward(self._error(passage, [self._learned[place] for place in chosen]))
                optimizer.step()
            prefix = self._student.layout.layers[passage.number] + "."
            live = {name: parameter.detach() for name, parameter in parameters.items()}
            found = {prefix + name: tensor for name, tensor in separate_experts(live).items()}
        return {name: found[name].to(w).contiguous() if name in found else w for name, w in weights.items()}

    @contextmanager
    def _trainable(self, passage: Passage, weights: Weights) -> Iterator[dict[str, Tensor]]:
        """Give the live layer's parameters: copies of `weights`, in fp32 at least."""
        student = self._student
        own = {name: weight.to(student.device, copy=True) for name, weight in weights.items()}
        wide = torch.promote_types(student.dtype, torch.float32)
        assign(passage.layer, student.layout, passage.number, own, student.device, wide)
        with torch.enable_grad():
            yield {name: each.requires_grad_(True) for name, each in passage.layer.named_parameters()}

    def _scale(self, parameter: Tensor) -> float:
        size = float(parameter.detach().float().square().mean().sqrt())
        return self._recipe.rate * max(self._recipe.least, size)

    def _share(self, step: int) -> float:
        """Return the learning rate's share at a step: a short rise, then down along a line."""
        recipe = self._recipe
        return min(1.0, (step + 1) / recipe.warmup) * (1 - step / recipe.steps)

    @torch.no_grad()
    def _judge(self, passage: Passage) -> float:
        return sum(float(self._error(passage, [place])) for place in self._judged) / len(self._judged)

    def _error(self, passage: Passage, places: Sequence[Place]) -> Tensor:
        """Return the mean relative error on some sequences."""
        student = self._student
        before_BTH, wanted_BTH = (
            torch.stack([states[batch][row] for batch, row in places]).to(student.device)
            for states in (passage.before, passage.wanted)
        )
        is_half = student.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(torch.device(student.device).type, torch.bfloat16, enabled=is_half):
            after_BTH = student.run(passage.number, before_BTH)
        wanted_BTH = wanted_BTH.index_select(-1, passage.channels.to(student.device)).float()
        worth_H = passage.worth.to(student.device)
        error_BT = ((after_BTH.float() - wanted_BTH).square() * worth_H).mean(-1)
        size_BT = (wanted_BTH.square() * worth_H).mean(-1)
        return (error_BT / size_BT.clamp_min(torch.finfo(torch.float32).tiny)).mean()
