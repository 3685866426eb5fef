"""Make up for what was removed, without training: layer after layer, in closed form.

Two models run side by side over calibration text, one layer at a time: the parent and what slicing left of it (the
student). Inside a layer the student's linear maps are refitted in the order they run (`least_squares`):

- a map that *reads* the hidden state gets weights with which it computes, from the student's hidden state, what the
  parent's map computes from the parent's: channels that were removed are predicted from those that stay;
- a map that *writes* to the hidden state gets weights with which the student's hidden state comes closest to the
  parent's, so that it also corrects errors made before it. The last map of a layer aims at where the parent is
  after the layers removed behind it, which folds them into it as far as a linear map can.

Folding removed units into kept ones is classic (Optimal Brain Surgeon; for structured pruning e.g. ZipLM, arXiv
2302.04089); aiming at the parent's own hidden states is what GPTQ's asymmetric calibration does (arXiv 2504.02692).

Experts of a mixture are refitted where they read; their outputs are mixed by the router's weights and stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from compress.models.family import option
from compress.models.layerwise import LayerwiseModel, Weights
from compress.models.layout import Layout
from compress.prune.kept import Kept
from compress.prune.least_squares import Moments, Slopes, damped_inverse, refit
from compress.prune.reconstruction import Passage, Recipe, Reconstruction
from compress.prune.scratch import Scratch
from compress.prune.slicing import SlicedWeights, cut
from compress.prune.stages import Stage, input_of, observing, stages_of

Batches = Sequence[Tensor]
"""Token ids ``[B, T]`` of every batch."""

Save = Callable[[str, Weights], None]
"""Keeps the refitted tensors of a part (``layer-3``, ``outside``), by their names in the student."""

Saved = Callable[[str], Weights | None]
"""Returns what `Save` kept of a part, ``None`` when there is nothing yet."""

WIDE_TOKENS = 1024
"""Tokens whose hidden states are in fp64 at once."""

HEAD_ROWS = 16384
"""Rows of the output head refitted at once: bounds the memory of a large vocabulary."""


@dataclass(frozen=True)
class Strength:
    """How far weights may move. Tuned in ``tests/benchmarks/pruning_quality.py``."""

    caution: float = 1.0
    """λ as a share of the mean energy of an input, times tokens per input: the fewer tokens there are for each number
    to fit, the less the weights move."""
    feedback: float = 1.0
    """How much of the error made before a writing map it is to correct: 0 none, 1 all."""

    def damping(self, moments: Moments) -> float:
        """Return λ for a fit on these sums."""
        return self.caution * len(moments.gram) / moments.num_tokens


class Compensation:
    """The two models and where they are in the text."""

    def __init__(
        self,
        parent: LayerwiseModel,
        after: Layout,
        kept: Kept,
        batches: Batches,
        scratch: Scratch,
        strength: Strength,
        reconstruct: int = 0,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        """reconstruct: steps along the gradient for each layer (`reconstruction`), after its least squares.

        heed: called between such steps, and may raise to stop.
        """
        self.before, self.after, self.kept, self.strength = parent.layout, after, kept, strength
        self.parent = parent
        self.sliced = SlicedWeights(parent.stored, parent.layout, after, kept)
        self.student = LayerwiseModel(self.sliced, after, parent.dtype, device=parent.device, resident=False)
        self.batches = batches
        self.reconstruction = (
            Reconstruction(self.student, batches, Recipe(reconstruct), heed) if reconstruct else None
        )
        self._parents = scratch.states("parent", batches, self.before.hidden, parent.dtype)
        self._students = scratch.states("student", batches, self.after.hidden, parent.dtype)
        self._entering = scratch.states("entering", batches, self.before.hidden, parent.dtype)
        self._scratch = scratch

    def run(self, save: Save, saved: Saved, progress: Callable[[int, int], None]) -> None:
        """Refit every layer and the output head. What was saved before is not fitted again.

        progress: called with parent layers passed, and all.
        """
        for ids, parent, student in zip(self.batches, self._parents, self._students, strict=True):
            parent.copy_(self.parent.embed(ids))
            student.copy_(self.student.embed(ids))
        stops = [*self.kept.layers, self.before.num_layers]
        for number in range(stops[0]):
            self._advance_parent(number)
        for new, (old, following) in enumerate(pairwise(stops)):
            part = f"layer-{new}"
            self._pass_layer(new, old, following, saved(part), partial(save, part))
            progress(following, self.before.num_layers)
        if saved("outside") is None:
            save("outside", self._refit_outside())

    def _pass_layer(
        self, new: int, old: int, following: int, done: Weights | None, save: Callable[[Weights], None]
    ) -> None:
        """Bring the parent to layer `following` and the student past its layer `new`, fitting that on the way."""
        with self.parent.layer(old) as teacher, self.student.layer(new) as layer:
            if done is None:
                stages = stages_of(self.before, old, teacher, lambda: self._run_parent(old, 0))
                seen = self._watch_parent(teacher, old, stages)
            else:
                seen = {}
                self._advance_parent_loaded(old)
            for number in range(old + 1, following):
                self._advance_parent(number)
            if done is None:
                fit = LayerFit(self, layer, new, old, seen)
                for stage in stages:
                    fit.refit(stage, is_last=stage is stages[-1])
                done = self._reconstructed(new, layer, fit.weights, seen[stages[0].module])
                save(done)
            else:
                self.student.assign(new, self.student.weights(new) | done)
            for student in self._students:
                student.copy_(self.student.run(new, student))

    def _reconstructed(self, new: int, layer: nn.Module, fitted: Weights, read: list[Tensor]) -> Weights:
        """Return a layer's weights after training it; the parent is past it. read: what its first maps read there."""
        if self.reconstruction is None:
            return fitted
        worth_H = _worth(self._entering, read)
        channels = self.kept.units.get("hidden", torch.arange(self.before.hidden))
        passage = Passage(new, layer, self._students, self._parents, channels, worth_H[channels])
        return self.reconstruction.improve(passage, self.student.weights(new) | fitted)

    def _watch_parent(self, teacher: nn.Module, old: int, stages: list[Stage]) -> dict[str, list[Tensor]]:
        """Pass the parent's layer; return what its reading maps read and its writing maps wrote."""
        seen = {
            stage.module: self._scratch.states(
                stage.module, self.batches, self.before.hidden, self.parent.dtype
            )
            for stage in stages
        }
        for index, hidden in enumerate(self._parents):
            with observing(teacher, [stage.module for stage in stages]) as calls:
                self._entering[index].copy_(hidden)
                leaving = self.parent.run(old, hidden)
            for stage in stages:
                read, wrote = calls[stage.module]
                seen[stage.module][index].copy_((wrote if stage.writes else read).reshape(hidden.shape))
            hidden.copy_(leaving)  # only now: without a norm before them, maps read this very tensor
        return seen

    def _run_parent(self, old: int, index: int) -> None:
        self.parent.run(old, self._parents[index])

    def _advance_parent(self, number: int) -> None:
        with self.parent.layer(number):
            self._advance_parent_loaded(number)

    def _advance_parent_loaded(self, number: int) -> None:
        for hidden in self._parents:
            hidden.copy_(self.parent.run(number, hidden))

    def _refit_outside(self) -> Weights:
        """Refit the output head where it is a matrix of its own, else the gain of the norm before it."""
        name = self.before.head or self.before.embedding
        moments = Moments(
            self.after.hidden, self.before.hidden, device=self.parent.device, dtype=self.parent.dtype
        )
        for ids, parent, student in zip(self.batches, self._parents, self._students, strict=True):
            moments.add(_head_input(self.student, ids, student), _head_input(self.parent, ids, parent))
        whole, sliced = self.parent.stored[name], self.sliced[name]
        if self.before.head is None:
            return self._refit_last_norm(moments, whole.to(self.parent.device), sliced.to(self.parent.device))
        inverse = damped_inverse(moments.gram, self.strength.damping(moments))
        rows = [
            refit(part_s, moments.gram, part_t.to(moments.cross) @ moments.cross, inverse).to(whole)
            for part_t, part_s in zip(
                torch.split(whole, HEAD_ROWS), torch.split(sliced, HEAD_ROWS), strict=True
            )
        ]
        return {name: torch.cat(rows)}

    def _refit_last_norm(self, moments: Moments, whole_VH: Tensor, sliced_VK: Tensor) -> Weights:
        """Refit one factor per channel before a tied head, so that logits come closest to the parent's.

        With ``z = f ∘ x`` the head's input, ``min_f Σ ‖E' (f ∘ x) − E y‖²`` has the normal equations
        ``(E'ᵀE' ∘ Σxxᵀ) f = diag(E'ᵀE Σyxᵀ)``; they start from ``f = 1``.
        """
        outside = [norm for norm in self.after.norms_over("hidden") if self.after.layer_of(norm) is None]
        if self.after.hidden == self.before.hidden or not outside:
            return {}
        name, bias = f"{outside[-1]}.weight", f"{outside[-1]}.bias"
        wide = moments.dtype
        e_VK, e_VH = sliced_VK.to(wide), whole_VH.to(wide)
        quadratic = ((e_VK.T @ e_VK) * moments.gram).double()
        linear = ((e_VK.T @ e_VH) * moments.cross.T).sum(1).double()
        ones = torch.ones_like(linear)
        factor = ones + damped_inverse(quadratic, self.strength.damping(moments)) @ (
            linear - quadratic @ ones
        )
        offset = float(option(self.before.family, "NORM_OFFSET"))
        gain = self.sliced[name]
        factor = factor.to(gain.device)
        fitted = {name: ((gain.double() + offset) * factor - offset).to(gain.dtype)}
        if bias in self.after.tensors:
            fitted[bias] = (self.sliced[bias].double() * factor).to(gain.dtype)
        return fitted


class LayerFit:
    """Refitting one layer of the student, stage by stage."""

    def __init__(
        self, models: Compensation, layer: nn.Module, new: int, old: int, seen: dict[str, list[Tensor]]
    ) -> None:
        self._models, self._layer, self._new, self._old, self._seen = models, layer, new, old, seen
        self.weights: Weights = {}

    def refit(self, stage: Stage, is_last: bool) -> None:
        """Fit a stage's weights on what reaches it now, and put them into the layer."""
        models = self._models
        fitted = self._writer(stage, is_last) if stage.writes else self._readers(stage)
        self.weights |= fitted
        models.student.assign(self._new, models.student.weights(self._new) | self.weights)

    def _readers(self, stage: Stage) -> Weights:
        models = self._models
        moments = self._moments(models.after.hidden, models.before.hidden)
        for index in range(len(models.batches)):
            read = self._until(stage.module, index)
            moments.add(read, self._seen[stage.module][index])
        inverse = damped_inverse(moments.gram, models.strength.damping(moments))
        fitted: Weights = {}
        whole_width = Kept(models.kept.layers, {u: k for u, k in models.kept.units.items() if u != "hidden"})
        for old_name in stage.tensors:
            if (new_name := models.sliced.becomes.get(old_name)) is None:
                continue  # of an expert that went
            stored = models.parent.stored[old_name]
            rows = _oriented(cut(stored, old_name, models.before, whole_width, {}), models.before, old_name)
            start = _oriented(models.sliced[new_name], models.after, new_name)
            cross = rows.to(moments.cross) @ moments.cross
            better = refit(start, moments.gram, cross, inverse).to(stored.dtype)
            fitted[new_name] = _oriented(better, models.after, new_name).contiguous()
        return fitted

    def _writer(self, stage: Stage, is_last: bool) -> Weights:
        models = self._models
        name = models.sliced.becomes[stage.tensors[0]]
        start = _oriented(models.sliced[name], models.after, name)
        moments = self._moments(start.shape[1], start.shape[0])
        channels = models.kept.units.get("hidden")
        for index in range(len(models.batches)):
            read, wanted = self._target(stage, index, is_last, channels)
            moments.add(read, wanted)
        bias_name = name.removesuffix("weight") + "bias"
        has_bias = bias_name in models.after.tensors
        gram, cross = moments.centered() if has_bias else (moments.gram, moments.cross)
        better = refit(start, gram, cross, damped_inverse(gram, models.strength.damping(moments)))
        dtype = models.parent.stored[models.sliced.origins[name]].dtype
        fitted = {name: _oriented(better.to(dtype), models.after, name).contiguous()}
        if has_bias:
            means = moments.sum_y - better.double() @ moments.sum_x
            fitted[bias_name] = (means / moments.num_tokens).to(dtype)
        return fitted

    def _target(
        self, stage: Stage, index: int, is_last: bool, channels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the writing map reads, and what it should write."""
        models = self._models

        def stays(hidden: Tensor) -> Tensor:
            return hidden if channels is None else hidden.index_select(-1, channels.to(hidden.device))

        family = models.before.family
        if not option(family, "RESIDUAL_ADDS") or option(
            family, "ENCODER"
        ):  # a norm follows the sum in encoders
            read = self._until(stage.module, index)
            return read, stays(self._seen[stage.module][index])
        student = models._students[index]
        if is_last:
            with observing(self._layer, [stage.module]) as calls:
                leaving = models.student.run(self._new, student)
            read, wrote = calls[stage.module]
            behind = stays(models._parents[index]).to(leaving.device) - leaving
            return read, wrote.reshape(behind.shape) + models.strength.feedback * behind
        read = self._until(stage.module, index)
        behind = stays(models._entering[index]) - student
        return read, stays(self._seen[stage.module][index]) + models.strength.feedback * behind

    def _until(self, module: str, index: int) -> Tensor:
        """Run the student's layer only as far as a module's input, and return that."""
        models = self._models
        reached = self._layer.get_submodule(module)
        return input_of(reached, lambda: models.student.run(self._new, models._students[index]))

    def _moments(self, num_inputs: int, num_outputs: int) -> Moments:
        parent = self._models.parent
        return Moments(num_inputs, num_outputs, device=parent.device, dtype=parent.dtype)


def _worth(hidden: Sequence[Tensor], read: Sequence[Tensor]) -> Tensor:
    """Return how much of each channel reaches the maps that read it, as energies, on average one: ``[H]``.

    That is the square of the slope of what is read over the hidden state, from which each token's own scale is taken
    off as norms do, and its mean where that explains more: a layer norm's bias is no part of it. A channel that never
    changes tells no slope, and counts like the average of the others.
    """
    scaled, deviating = Slopes(hidden[0].shape[-1]), Slopes(hidden[0].shape[-1])
    for batch in zip(hidden, read, strict=True):
        parts = (torch.split(each.reshape(-1, each.shape[-1]), WIDE_TOKENS) for each in batch)
        for state_NH, reading_NH in zip(*parts, strict=True):
            state_NH, reading_NH = state_NH.double(), reading_NH.double()
            scaled.add(_to_unit_energy(state_NH), reading_NH)
            deviating.add(_to_unit_energy(state_NH - state_NH.mean(-1, keepdim=True)), reading_NH)
    chosen = min(scaled, deviating, key=lambda slopes: slopes.unexplained())
    changes_H, worth_H = chosen.changes(), chosen.slopes().square()
    usual = worth_H[changes_H].mean() if bool(changes_H.any()) else worth_H.new_ones(())
    worth_H = torch.where(changes_H, worth_H, usual)
    return (worth_H / worth_H.mean().clamp_min(torch.finfo(torch.float32).tiny)).float()


def _to_unit_energy(state_NH: Tensor) -> Tensor:
    return (
        state_NH * state_NH.square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
    )


def _head_input(model: LayerwiseModel, ids: Tensor, hidden: Tensor) -> Tensor:
    """Return what the output head reads."""
    return input_of(model.model.get_output_embeddings(), lambda: model.logits(ids, hidden))


def _oriented(weight: Tensor, layout: Layout, name: str) -> Tensor:
    """Return a stored weight as ``[out, in]``, or back."""
    return weight.T if layout.out_dim(name) == 1 else weight
