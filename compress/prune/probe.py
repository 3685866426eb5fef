"""How much worse some shapes predict than the model they are cut from, without any of them being written.

Every shape is cut, refitted on a part of the calibration text and judged on another part, which it was not refitted
on; its weights exist one layer at a time. What is left is a number a shape, so dozens of shapes of a large model cost
no disk. `prune.search` submits it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from compress.models.layout import Layout, layout
from compress.plugins import Context, Prepared
from compress.prune.interface import Unit, importance
from compress.prune.layer_scores import layer_scores
from compress.prune.settings import CompensationSettings, ScoreSettings
from compress.prune.shapes import shaped
from compress.quantities import Count
from compress.records import Artifact, JsonValue, Outcome

VERSION = 2
ACCEPTS = ("hf",)
PRODUCES = "divergences"
INTERNAL = True

TOKENS_PER_NEURON = 4
LEAST_TOKENS = 8192


class TrialSettings(CompensationSettings):
    """How shapes are tried out."""

    importance: str = "compensated"
    """How units within layers are scored: a file of ``compress/prune/importance``."""
    layer_importance: str = "iterative_loss"
    """How layers are scored."""
    trial_tokens: Count | None = None
    """Calibration tokens each shape that is tried is refitted on; it is judged on a third as many others. Left out:
    four for every neuron of an FFN, at least 8192. Too few make shapes look worse than they will be."""

    def tokens_for(self, model: Layout) -> int:
        """Return how many tokens a trial is refitted on."""
        widest = max(model.ffn, model.expert_ffn, model.hidden)
        return self.trial_tokens or max(LEAST_TOKENS, TOKENS_PER_NEURON * widest)


class Config(TrialSettings):
    """What to try."""

    shapes: tuple[dict[Unit, int], ...]
    """The numbers of units that stay, by axis; an axis that is not named stays whole."""


def wanted_scores(config: TrialSettings, axes: Iterable[Unit]) -> dict[str, Prepared]:
    """Return the scores that cutting along these axes needs; `prune` asks for the same."""
    common = {name: getattr(config, name) for name in ("calibration", "tokens", "memory")}
    axes = set(axes)
    wanted: dict[str, Prepared] = {}
    if axes - {"layers"}:
        wanted["scores"] = Prepared("prune.scores", ScoreSettings(importance=config.importance, **common))
    if "layers" in axes:
        wanted["layer_scores"] = layer_scores(config.layer_importance, None, config)
    return wanted


def prepare(config: Config) -> dict[str, Prepared]:
    """Ask for the scores of every axis that is cut."""
    return wanted_scores(config, {axis for lengths in config.shapes for axis in lengths})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Return a fact: for every shape its ``divergence``, KL(parent ‖ pruned) in nats a token, and standard ``error``.

    What a killed run had measured is not measured again.
    """
    from compress.prune.pruning import read_scores
    from compress.prune.trials import Trials

    assert parent.spec is not None
    before = layout(parent.spec.config)
    scores = read_scores(context, "scores", "layer_scores")
    metric = importance(config.layer_importance, ["layers"])
    measured = _Measured(context.partial / "measured.json")
    trials: Trials | None = None
    for number, lengths in enumerate(config.shapes, start=1):
        if lengths not in measured:
            trials = trials or Trials(parent.path, before, scores, metric, config, context)
            measured.add(lengths, trials.divergence(shaped(before, lengths)).as_facts())
        context.progress(number, len(config.shapes), "shapes")
    return Outcome(facts={"shapes": [measured[lengths] for lengths in config.shapes]})


class _Measured:
    """The figures of shapes, in a file that outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._figures: dict[str, JsonValue] = json.loads(path.read_text()) if path.is_file() else {}

    def __contains__(self, lengths: Mapping[Unit, int]) -> bool:
        return json.dumps(lengths, sort_keys=True) in self._figures

    def __getitem__(self, lengths: Mapping[Unit, int]) -> JsonValue:
        return self._figures[json.dumps(lengths, sort_keys=True)]

    def add(self, lengths: Mapping[Unit, int], figures: Mapping[str, float]) -> None:
        self._figures[json.dumps(lengths, sort_keys=True)] = {"lengths": dict(lengths), **figures}
        staged = self._path.with_suffix(".new")
        staged.write_text(json.dumps(self._figures))
        staged.rename(self._path)
