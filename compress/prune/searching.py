"""The search itself: probe the axes, foretell all shapes, measure the most promising, choose."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress import plugins
from compress.errors import InputError
from compress.models.layout import Layout, layout
from compress.plugins import Context
from compress.prune.directions import Direction, directions
from compress.prune.foretelling import corrections, loss_along
from compress.prune.interface import Unit
from compress.prune.planning import float_bytes
from compress.prune.shapes import KEYS, Shapes, default_axes, length
from compress.prune.target import costs_of, fitting, possible_shapes, shape_for
from compress.prune.timings import milliseconds
from compress.records import Artifact, JsonValue

if TYPE_CHECKING:
    from compress.prune.search import Config
    from compress.prune.shapes import Numbers

APART = 0.06
"""The first half of the candidates differ by at least this share along some axis; the others may lie anywhere."""

SHARED = ("calibration", "tokens", "memory", "compensate", "importance", "layer_importance")
"""Settings that are passed on to what is submitted."""


@dataclass
class Candidate:
    """A shape that was measured as a whole."""

    index: int
    predicted: float
    """What was foretold of it when it was picked."""
    divergence: float
    error: float
    recovered: float | None = None
    recovered_error: float | None = None

    @property
    def judged(self) -> float:
        """What it is chosen by."""
        return self.divergence if self.recovered is None else self.recovered


class Search:
    """One search for one parent."""

    def __init__(self, parent: Artifact, config: "Config", context: Context) -> None:
        assert parent.spec is not None
        self._parent, self._config, self._context = parent, config, context
        self._before = layout(parent.spec.config)
        self._axes: tuple[Unit, ...] = config.axes or ("layers", *default_axes(self._before))
        self._bytes = float_bytes(parent.spec)
        self._tokens = config.tokens_for(self._before)
        self._probed: dict[Unit, list[dict[str, Any]]] = {}
        self._candidates: list[Candidate] = []
        self._shapes = possible_shapes(self._before, self._axes, config.align)
        self._costs, self._whole, self._budget = self._costs_of(self._shapes)
        self._chosen: Candidate | None = None

    def run(self) -> Layout:
        """Return the best shape that was measured; its layers are the first ones."""
        even = self._even()
        found = directions(self._before, self._axes, self._config.align, even, self._costs_of)
        total = len(found) + self._config.candidates
        for number, direction in enumerate(found):
            self._context.progress(number, total, "measurements")
            self._probe(direction)
        self._losses = self._losses_of(found)
        allowed = fitting(self._costs, self._budget) & self._within_probed(found)
        self._measure(self._index_of(even))
        while len(self._candidates) < self._config.candidates:
            self._context.progress(len(found) + len(self._candidates), total, "measurements")
            picked = self._pick(allowed)
            if picked is None:
                break
            self._measure(picked)
        if self._config.recover_tokens is not None:
            self._recover()
        self._chosen = self._choose()
        return self._shapes.layout(self._chosen.index)

    def facts(self) -> JsonValue:
        """Return every probe and every candidate, and what the figures mean."""
        name, _ = self._config.target.budget
        return {
            "cost": name,
            "budget": self._budget,
            "whole": self._whole,
            "compared_with": "teacher" if self._config.recover_tokens else "parent",
            "refitted_on_tokens": self._tokens,
            "shapes": int(fitting(self._costs, self._budget).sum()),
            "probes": [
                {
                    "axis": axis,
                    "whole": length(self._before, axis),
                    "size": each["lengths"][axis],
                    **_figures(each),
                }
                for axis, measured in self._probed.items()
                for each in measured
            ],
            "candidates": [self._fact(candidate) for candidate in self._candidates],
        }

    def _even(self) -> Layout:
        times = milliseconds(self._context, self._shapes)
        target, align = self._config.target, self._config.align
        return shape_for(target, self._before, self._axes, align, dtype_bytes=self._bytes, milliseconds=times)

    def _costs_of(self, shapes: Shapes) -> tuple["Numbers", float, float]:
        return costs_of(self._config.target, shapes, self._bytes, milliseconds(self._context, shapes))

    def _probe(self, direction: Direction) -> None:
        self._probed[direction.axis] = self._divergences(direction.probes)

    def _measure(self, index: int) -> None:
        """Measure a shape as a whole."""
        [figures] = self._divergences((self._cut(index),))
        predicted = float(self._foretold()[index])
        self._candidates.append(Candidate(index, predicted, **_figures(figures)))

    def _divergences(self, shapes: tuple[dict[Unit, int], ...]) -> list[dict[str, Any]]:
        settings = {**self._shared(), "trial_tokens": self._tokens, "shapes": list(shapes)}
        found = self._submit("prune.probe", settings, self._parent)
        measured: list[dict[str, Any]] = found.facts["shapes"]
        return measured

    def _losses_of(self, found: list[Direction]) -> "Numbers":
        """Return what every axis alone costs every shape: ``[num_axes, num_shapes]``."""
        removed = dict(zip(self._shapes.axes, 1 - self._shapes.fractions(), strict=True))
        rows = []
        for direction in found:
            measured, whole = self._probed[direction.axis], length(self._before, direction.axis)
            shares = [1 - each["lengths"][direction.axis] / whole for each in measured]
            divergences = [each["divergence"] for each in measured]
            rows.append(loss_along(shares, divergences, removed[direction.axis]))
        return np.stack(rows) if rows else np.zeros((0, len(self._shapes)))

    def _foretold(self) -> "Numbers":
        """Return the divergence foretold of every shape, corrected by the candidates measured so far."""
        if not self._candidates or not len(self._losses):
            summed: Numbers = self._losses.sum(0)
            return summed
        measured = np.array([candidate.divergence for candidate in self._candidates])
        losses_MA = self._losses[:, [candidate.index for candidate in self._candidates]].T
        corrected: Numbers = corrections(losses_MA, measured) @ self._losses
        return corrected

    def _pick(self, allowed: "Numbers") -> int | None:
        """Return the most promising shape not yet measured, ``None`` when there is no other worth it.

        One that keeps no more than a measured shape along any axis can only be cheaper. Of the first half, one that is
        apart from all that were. With `slack`, every other one is the cheapest that may still be good enough.
        """
        foretold, taken = self._foretold(), [candidate.index for candidate in self._candidates]
        shares, left = self._shapes.fractions(), allowed.copy()
        left[taken] = False
        if not self._config.slack:
            for index in taken:
                left &= (shares > shares[:, [index]]).any(0)
        if len(taken) <= self._config.candidates / 2:
            distances: Numbers = np.min(
                [np.abs(shares - shares[:, [index]]).max(0) for index in taken], axis=0
            )
            apart = left & (distances >= APART)
            left = apart if apart.any() else left
        if not left.any():
            return None
        if self._config.slack and len(taken) % 2 == 0:
            best = min(foretold[allowed].min(), *(candidate.divergence for candidate in self._candidates))
            thrifty = left & (foretold <= best * (1 + self._config.slack))
            if thrifty.any():
                return int(np.flatnonzero(thrifty)[self._costs[thrifty].argmin()])
        return int(np.flatnonzero(left)[foretold[left].argmin()])

    def _within_probed(self, found: list[Direction]) -> "Numbers":
        """Return which shapes keep at least what was tried along every axis: nothing is known beyond."""
        smallest = {direction.axis: direction.smallest for direction in found}
        if self._before.heads_fill_hidden:
            smallest["hidden"] = 0  # it follows the heads
        within = np.ones(len(self._shapes), dtype=bool)
        for axis, kept in zip(self._shapes.axes, self._shapes.fractions(), strict=True):
            whole = length(self._before, axis)
            within &= kept >= smallest.get(axis, whole) / whole - 1e-9
        return within

    def _recover(self) -> None:
        """Distil every candidate a little and measure it again."""
        config, inputs = self._config, self._context.inputs
        if inputs["teacher"].kind != "hf":
            raise InputError(
                f"teacher '{config.teacher}' makes {inputs['teacher'].kind}; candidates learn from hf only"
            )
        learning: dict[str, Any] = {"tokens": config.recover_tokens, "learning_rate": config.learning_rate}
        judging: dict[str, Any] = {
            "calibration": config.calibration,
            "tokens": config.tokens,
            "memory": config.memory,
        }
        for candidate in self._candidates:
            sizes = _target(self._before, self._cut(candidate.index))
            pruned = self._submit("prune", {**self._shared(), "target": sizes}, self._parent)
            settings = {**learning, "teacher": config.teacher, "data": config.data}
            recovered = self._submit("distill", settings, pruned)
            settings = {**judging, "trial_tokens": self._tokens, "teacher": config.teacher}
            figures = self._submit("prune.recovered", settings, recovered).facts
            candidate.recovered, candidate.recovered_error = figures["divergence"], figures["error"]

    def _submit(self, use: str, settings: Mapping[str, Any], parent: Artifact) -> Artifact:
        module = plugins.internal(use)
        needed = plugins.needed(module, module.Config.model_validate(dict(settings)))
        inputs = {name: self._context.inputs[name] for name in needed}
        return self._context.submit(use, settings, parent, inputs)

    def _shared(self) -> dict[str, Any]:
        return {name: getattr(self._config, name) for name in SHARED}

    def _choose(self) -> Candidate:
        """Return the best within the slack: the cheapest of those that are good enough, the better of equals."""
        least = min(candidate.judged for candidate in self._candidates)
        good = [c for c in self._candidates if c.judged <= least * (1 + self._config.slack)]
        return min(good, key=lambda c: (self._costs[c.index], c.judged))

    def _cut(self, index: int) -> dict[Unit, int]:
        """Return the numbers of units along the axes that shrink."""
        lengths = self._shapes.lengths(index)
        return {axis: n for axis, n in lengths.items() if n < length(self._before, axis)}

    def _index_of(self, shape: Layout) -> int:
        lengths = {axis: length(shape, axis) for axis in self._shapes.axes}
        return next(index for index in range(len(self._shapes)) if self._shapes.lengths(index) == lengths)

    def _fact(self, candidate: Candidate) -> dict[str, JsonValue]:
        shape = self._shapes.layout(candidate.index)
        axes: tuple[Unit, ...] = self._axes
        return {
            "sizes": {KEYS[a]: length(shape, a) if a != "heads" else shape.num_heads for a in axes},
            "cost": float(self._costs[candidate.index]),
            "num_parameters": shape.num_parameters,
            "predicted": candidate.predicted,
            "divergence": candidate.divergence,
            "error": candidate.error,
            "recovered": candidate.recovered,
            "recovered_error": candidate.recovered_error,
            "is_even": candidate is self._candidates[0],
            "is_chosen": candidate is self._chosen,
        }


def _figures(measured: Mapping[str, Any]) -> dict[str, float]:
    return {"divergence": measured["divergence"], "error": measured["error"]}


def _target(before: Layout, lengths: Mapping[Unit, int]) -> dict[str, int]:
    """Return the explicit target that asks for these numbers of units."""
    sizes = {KEYS[axis]: n for axis, n in lengths.items() if axis != "heads"}
    if "heads" in lengths:
        sizes[KEYS["heads"]] = lengths["heads"] * lengths.get("kv_groups", before.num_kv_heads)
    return sizes or {"layers": before.num_layers}
