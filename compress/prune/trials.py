"""Trying shapes out on one model: cut, refit, judge, forget.

Refitting passes the student's layers in order, each once; the text it is judged on passes with it, layer by layer, so
no more than one layer of the student is ever in memory (`compress.prune.compensation`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.data.tokens import PackedTokens, order
from compress.errors import InputError
from compress.models.device import default_device
from compress.models.layerwise import LayerwiseModel, Weights
from compress.models.layout import Layout
from compress.plugins import Context
from compress.prune.calibration import BATCH_TOKENS, is_resident
from compress.prune.compensation import Compensation, Strength
from compress.prune.interface import Importance, Unit
from compress.prune.judge import Divergence, Judge, last_states
from compress.prune.kept import Kept
from compress.prune.probe import TrialSettings
from compress.prune.pruning import choose, with_chosen_layers
from compress.prune.scratch import Scratch
from compress.prune.slicing import SlicedWeights

JUDGED_SHARE = 1 / 3
"""Tokens a shape is judged on, for each it is refitted on."""


class Trials:
    """A model, its scores, and the text that shapes of it are refitted and judged on."""

    def __init__(
        self,
        parent: Path,
        before: Layout,
        scores: Mapping[Unit, Tensor],
        layer_metric: Importance | None,
        settings: TrialSettings,
        context: Context,
    ) -> None:
        self._before, self._scores, self._metric = before, scores, layer_metric
        self._context, self._compensate = context, settings.compensate
        device = default_device()
        resident = is_resident(parent, settings.memory, device)
        self._scratch_folder = None if resident else context.partial
        self._model = LayerwiseModel.open(parent, before, device=device, resident=resident)
        self._batches, judged = read_parts(context, settings.tokens_for(before), device)
        self._judge = Judge(self._model, judged)

    def divergence(self, after: Layout) -> Divergence:
        """Return how far the parent, cut to a shape, is from itself; which layers stay is for the scores to say."""
        kept = choose(self._before, after, self._scores, self._metric)
        if len(kept.layers) < self._before.num_layers:
            after = with_chosen_layers(self._before, after, kept.layers)
        with torch.inference_mode():
            if self._compensate:
                return self._refitted(after, kept)
            stored = SlicedWeights(self._model.stored, self._before, after, kept)
            student = LayerwiseModel(
                stored, after, self._model.dtype, device=self._model.device, resident=False
            )
            return self._judge.divergence(student, last_states(student, self._judge.batches))

    def _refitted(self, after: Layout, kept: Kept) -> Divergence:
        with TemporaryDirectory(dir=self._context.partial) as folder:
            scratch = Scratch(Path(folder) if self._scratch_folder else None, self._model.device)
            compensation = Compensation(self._model, after, kept, self._batches, scratch, Strength())
            student = compensation.student
            states = [student.embed(ids) for ids in self._judge.batches]

            def follow(part: str, weights: Weights) -> None:
                """The part has just been fitted, and the student has it."""
                if part == "outside":
                    _give_outside(student, weights)
                else:
                    number = int(part.removeprefix("layer-"))
                    states[:] = [student.run(number, state) for state in states]
                if self._context.stopping:
                    self._context.stop()

            compensation.run(follow, lambda part: None, lambda done, total: None)
            return self._judge.divergence(student, states)


def read_parts(context: Context, tokens: int, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return batches of token ids ``[B, T]`` to refit on, at most `tokens`, and others to judge on.

    Those to judge on come last in the seeded order of the calibration data: where it is longer than what scores are
    made from, scores have not seen them either. Raises `InputError` when there are not two sequences.
    """
    packed = PackedTokens.open(context.inputs["calibration"].path)
    count, length = packed.num_sequences, packed.sequence_length
    if count < 2:
        raise InputError("calibration: trying shapes out takes two sequences at least, one to judge on")
    refitted, judged = max(1, tokens // length), max(1, round(tokens * JUDGED_SHARE) // length)
    if refitted + judged > count:
        judged = max(1, count // 4)
        refitted = count - judged
    chosen = order(count, context.seed, epoch=0).tolist()
    size = max(1, BATCH_TOKENS // length)

    def batches(indices: Sequence[int]) -> list[Tensor]:
        starts = range(0, len(indices), size)
        return [packed.batch(indices[start : start + size]).to(device) for start in starts]

    return batches(chosen[:refitted]), batches(chosen[-judged:])


def _give_outside(student: LayerwiseModel, weights: Weights) -> None:
    """Put refitted tensors from outside the layers into the student."""
    live = {student.layout.live_tensor(n): w.to(student.device, student.dtype) for n, w in weights.items()}
    student.model.load_state_dict(live, strict=False, assign=True)
