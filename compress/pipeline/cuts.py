"""Which pruning steps meet a target: what `compress init` writes before the steps that recover and quantize.

Nothing is guessed: each step is asked what it would make, by the predictions that `plan` prints, so what is chosen can
run. A vocabulary that is much of a model is cut first: a small model's texts use a fraction of 262,144 ids, and layers
that go in their stead cost quality. Then go some of many layers, then width, in sizes that groups of quantization fill.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from compress import plugins
from compress.errors import InputError
from compress.pipeline.complaints import complaints
from compress.pipeline.vocabulary import vocabulary_bytes, vocabulary_parameters
from compress.quantities import format_count
from compress.records import ModelSpec

SMALL_PARAMETERS = 50_000_000
"""Below this a laptop's processor will do."""
CUT_SHARE = 0.25
"""From this share of the bytes on a vocabulary is cut first."""
KEPT_TOKENS = 32_000
"""What stays of it: as many ids as Llama 2 and Mistral 7B have. One of less than twice as many is left alone."""
MANY_LAYERS = 16
"""From here on some layers go as well: fewer layers answer faster than narrower ones."""
DEPTH_SHARE = 0.85
"""Of the layers that stay then."""
GROUP_SIZES = (128, 64, 32, 16)
LARGE_GROUP = 32
"""From this size on a larger one is no reason to choose other shapes."""
BUDGETS = 24
"""How many are tried where it is the parameters outside the vocabulary that must meet a target."""

Count = Callable[[ModelSpec], int]


@dataclass(frozen=True)
class Cuts:
    """The pruning steps, each by its target where it is taken, and the model that they leave."""

    student: ModelSpec
    counted: str = "all parameters"
    """What the target is a share of."""
    share: float = 1.0
    """What is left of that."""
    vocabulary: str | None = None
    """The target of `prune.vocab`, as YAML."""
    layers: int | None = None
    """What `prune.depth` keeps."""
    params: str | None = None
    """The budget of `prune.width`, of the whole model."""
    width: dict[str, Any] = field(default_factory=dict)
    """Its other settings."""


def cuts(spec: ModelSpec, target: str, rewrites_tokenizer: bool) -> Cuts:
    """Return the steps that leave a model the size of a target.

    target: a number of parameters (``350M``), or a share: of those outside embedding and head where the vocabulary is
    cut, else of all. rewrites_tokenizer: whether `prune.vocab` can. Raises `InputError` for what cannot be met.
    """
    asked = _budget(target)
    cut = _without_rare_tokens(spec) if rewrites_tokenizer else None
    if cut is None:
        predicted("prune.width", spec, target={"params": target})  # refuses what cannot be met at all
        return _narrowed(Cuts(spec), spec, _parameters, asked)
    if isinstance(asked, int):
        if cut.num_parameters <= asked <= spec.num_parameters:
            student = predicted("prune.vocab", spec, target={"params": asked})
            left = student.num_parameters / spec.num_parameters
            return Cuts(student, share=left, vocabulary=f"{{params: {target}}}")
        begun = Cuts(cut, vocabulary=f"{{tokens: {format_count(KEPT_TOKENS)}}}")
        return _narrowed(begun, spec, _parameters, asked)
    counted = "the parameters outside embedding and head"
    begun = Cuts(cut, counted, vocabulary=f"{{tokens: {format_count(KEPT_TOKENS)}}}")
    return _narrowed(begun, spec, _outside_vocabulary, asked)


def predicted(use: str, spec: ModelSpec, **settings: Any) -> ModelSpec:
    """Return what a step makes of a model. Raises `InputError` for settings it does not take."""
    step = plugins.step(use)
    try:
        config = step.Config.model_validate(settings)
    except ValidationError as error:
        raise InputError(
            "\n".join(said for _, said in complaints(error, step.Config, settings, use))
        ) from error
    return step.predict(spec, config)


def refusal(use: str, spec: ModelSpec, **settings: Any) -> str | None:
    """Return why a step would not take a model, if it would not."""
    try:
        predicted(use, spec, **settings)
    except InputError as error:
        return str(error)
    return None


def group_size(*specs: ModelSpec) -> int | None:
    """Return the largest group that divides every layer of some models, or `None`."""
    return next((size for size in GROUP_SIZES if all(_has_groups(spec, size) for spec in specs)), None)


def _has_groups(spec: ModelSpec, size: int) -> bool:
    return refusal("quantize.rtn", spec, bits=4, group_size=size) is None


def _budget(target: str) -> int | str:
    step = plugins.step("prune.width")
    try:
        config: Any = step.Config.model_validate({"target": {"params": target}})
    except ValidationError as error:
        settings = {"target": {"params": target}}
        said = [message for _, message in complaints(error, step.Config, settings, "--target")]
        raise InputError("\n".join(said)) from error
    budget: int | str = config.target.params
    return budget


def _without_rare_tokens(spec: ModelSpec) -> ModelSpec | None:
    """Return a model with the usual number of tokens, where its vocabulary is large enough to be cut."""
    is_much = vocabulary_bytes(spec) >= CUT_SHARE * spec.weight_bytes
    if not is_much or int(spec.config.get("vocab_size") or 0) < 2 * KEPT_TOKENS:
        return None
    return predicted("prune.vocab", spec, target={"tokens": KEPT_TOKENS})


def _parameters(spec: ModelSpec) -> int:
    return spec.num_parameters


def _outside_vocabulary(spec: ModelSpec) -> int:
    return spec.num_parameters - vocabulary_parameters(spec)


def _narrowed(begun: Cuts, original: ModelSpec, count: Count, asked: int | str) -> Cuts:
    """Return the cuts with layers and width taken off as well, until what is counted is what was asked for."""
    whole = count(original)
    wanted = round(whole * float(asked[:-1]) / 100) if isinstance(asked, str) else asked
    made = begun
    if count(begun.student) > wanted:
        shorter = _shortened(begun, wanted / count(begun.student))
        made = _with_width(shorter, count, wanted)
    return replace(made, share=count(made.student) / whole)


def _shortened(begun: Cuts, share: float) -> Cuts:
    num_layers: int = plugins.internal("models.layout").layout(begun.student.config).num_layers
    if num_layers < MANY_LAYERS or share >= 0.8:
        return begun
    kept = round(DEPTH_SHARE * num_layers)
    return replace(
        begun, student=predicted("prune.depth", begun.student, target={"layers": kept}), layers=kept
    )


def _with_width(begun: Cuts, count: Count, wanted: int) -> Cuts:
    """Return the cuts with a narrowing, of the ways to meet the target one that leaves layers groups, if any does."""
    step = 16 if begun.student.num_parameters < SMALL_PARAMETERS else 64
    aligned = {"align": {"hidden": step, "ffn": step}}
    ways: list[Cuts] = []
    for settings in ({}, aligned, {**aligned, "axes": ["ffn", "hidden"]}):
        with suppress(InputError):  # other sizes than the plain way's may not reach the target
            ways.append(_nearest(begun, settings, count, wanted))
    if not ways:
        return _nearest(begun, {}, count, wanted)  # raises, and says what would be reached
    return max(ways, key=lambda way: min(LARGE_GROUP, group_size(way.student) or 0))


def _nearest(begun: Cuts, settings: dict[str, Any], count: Count, wanted: int) -> Cuts:
    """Return the narrowing that comes nearest to what is wanted. Raises `InputError` where none is small enough."""
    found: list[Cuts] = []
    refused: InputError | None = None
    for budget in map(format_count, _budgets(begun.student, count, wanted)):
        try:
            student = predicted("prune.width", begun.student, target={"params": budget}, **settings)
        except InputError as error:
            refused = error
            continue
        found.append(replace(begun, student=student, params=budget, width=settings))
    if not found:
        assert refused is not None
        raise refused
    return min(found, key=lambda way: abs(count(way.student) - wanted))


def _budgets(spec: ModelSpec, count: Count, wanted: int) -> Iterator[float]:
    """Yield how many parameters the whole may have, where the vocabulary's rows become as narrow as the layers."""
    beside = spec.num_parameters - count(spec)
    if not beside:
        yield wanted
        return
    for step in range(BUDGETS + 1):
        yield wanted + beside * step / BUDGETS
