"""Distill: the student learns the teacher's distribution over the next token, and the text as far as asked.

    L = (1 − w) · T² · D(teacher at T ‖ student at T) + w · CE(text) + h · H(teacher, student)

The default, forward KL at T = 1 without labels, is what recovered pruned models best in Muralidharan et al.
2024 (Minitron, arXiv:2407.14679). H, off by default, is the distance between hidden states. The teacher runs beside
the student, or has run before (`cache_teacher`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from compress.distill import cache_teacher
from compress.distill.cache_teacher import CacheSettings
from compress.distill.comparison import comparison_memory
from compress.distill.divergences import chosen, named
from compress.distill.worth import cache_advice, own_teacher_advice
from compress.plugins import Context, ModelRef, Planned, Prepared, row_length, texts_of
from compress.records import Artifact, JsonValue, ModelSpec, Outcome, Work
from compress.train.advice import training_advice
from compress.train.cost import beside_cards, training_work
from compress.train.duration import timed
from compress.train.memory_account import Teaching, total
from compress.train.settings import TrainingSettings, rehearsed, trained

VERSION = 5
ACCEPTS = ("hf",)
PRODUCES = "hf"


def _as_settings(value: Any) -> Any:
    """Read ``true`` as the default settings, and ``false`` as none. Raises `ValueError` for what is neither."""
    if not isinstance(value, bool | Mapping | CacheSettings | None):
        raise ValueError(f"expected true, false, or settings such as {{top_k: 24}}, found {value!r}")
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Cache = Annotated[CacheSettings | None, BeforeValidator(_as_settings, CacheSettings | bool | None)]


class Config(TrainingSettings):
    """How to train, and what to learn from whom."""

    teacher: ModelRef = "original"
    """Whose distribution to learn: ``original`` or a step's name. It must have the student's tokenizer, or the one
    that ``prune.vocab`` made the student's from: then it is asked about the tokens the student has."""
    divergence: str | dict[str, Any] = "forward_kl"
    """How to compare the distributions: a file of ``compress/distill/losses``, by its name or with settings,
    ``{use: jsd, beta: 0.1}``."""
    temperature: float = Field(default=1.0, gt=0)
    """Both models' logits are divided by it; above 1 the unlikely tokens count more."""
    label_weight: float = Field(default=0.0, ge=0, le=1)
    """The share w of the text's own next tokens in the loss; 1 is training without the teacher's distribution."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """The weight h of the mean squared distance between hidden states: after every layer of the student, to the
    teacher's after the layer it stands for (the last one before the next that stayed), at the channels that stayed, as
    a share of the teacher's mean square there. ``pruning_map.json`` says which, so no projection is learned: the
    student must have been pruned from the teacher, or have its layers and channels."""
    cache_teacher: Cache = None
    """Ask the teacher once about all of the data, keep its answers in about 130 bytes a token, and train from them:
    ``true``, or settings. It pays where the data are read several times, by several epochs or students. For forward KL,
    and within a small error that the record states. Of held-out text the teacher is asked too, and in all caches alike:
    its figures are those of a running teacher, with `loss` and `kl` right to about 0.3 %; only at temperatures other
    than 1 there are no `kl` and no `teacher_entropy`."""
    teacher_precision: Literal["auto", "bf16", "fp32", "int8", "nf4"] = "auto"
    """What the teacher's weights are kept in: ``auto`` is as they are stored, or fp32 where bf16 is slow. ``int8`` and
    ``nf4`` save memory: bitsandbytes rounds all but the head, and the teacher is a little worse for it."""

    teacher_device: str = "auto"
    """Where the teacher's layers run: ``auto`` is beside the student; another GPU, ``cuda:1``, or ``cpu``, where both
    do not fit on one; ``offload`` runs them beside the student and keeps them in host memory, each copied to the GPU
    while the one before it runs: two layers of the teacher are there at a time. Its logits are made beside the
    student's all the same, from its last hidden states. With `launch` the teacher is shared out among all processes
    instead."""

    @field_validator("teacher_device")
    @classmethod
    def _is_a_device(cls, setting: str) -> str:
        if not re.fullmatch(r"auto|offload|cpu|cuda(:\d+)?", setting):
            raise ValueError(f"'{setting}' is no device. Allowed: auto, offload, cpu, cuda, cuda:1, …")
        return setting

    @field_validator("divergence")
    @classmethod
    def _exists(cls, setting: str | dict[str, Any]) -> str | dict[str, Any]:
        chosen(setting)
        return setting

    @model_validator(mode="after")
    def _rounded_teacher_stays_where_it_is(self) -> "Config":
        if self.teacher_device == "offload" and self.teacher_precision in ("int8", "nf4"):
            raise ValueError(
                f"`teacher_device: offload` is for weights as they are stored, and `teacher_precision: "
                f"{self.teacher_precision}` keeps others beside them: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _teacher_has_a_device(self) -> "Config":
        for name in ("launch", "cache_teacher"):
            if self.teacher_device != "auto" and getattr(self, name) is not None:
                raise ValueError(
                    f"`teacher_device: {self.teacher_device}` is for a teacher that runs beside one process: "
                    f"leave it out with `{name}`, or leave out `{name}`"
                )
        return self

    @model_validator(mode="after")
    def _cache_has_what_is_asked(self) -> "Config":
        if self.cache_teacher is None:
            return self
        name = self.divergence if isinstance(self.divergence, str) else self.divergence["use"]
        if name != "forward_kl":
            raise ValueError(
                f"cache_teacher keeps what forward KL needs: `divergence: {name}` needs the teacher itself. "
                "Write `divergence: forward_kl`, or leave out `cache_teacher`"
            )
        if self.hidden_weight > 0:
            raise ValueError(
                "cache_teacher keeps no hidden states: leave out `hidden_weight`, or leave out `cache_teacher`"
            )
        return self


def prepare(config: Config) -> dict[str, Prepared]:
    """Have the teacher asked beforehand where that is wanted; students of one teacher share it."""
    if config.cache_teacher is None:
        return {}
    asked = {name: getattr(config, name) for name in cache_teacher.OF_TRAINING}
    wanted = {"signals": _asked_of_teacher(config.cache_teacher, asked)}
    if config.held_out is not None:
        others = {"data": config.held_out, "tokens": None, "batch_tokens": None}
        asked |= {**others, "first_rows": config.held_out_rows}
        wanted["held_out_signals"] = _asked_of_teacher(cache_teacher.HELD_OUT, asked)
    return wanted


def _asked_of_teacher(kept: CacheSettings, asked: Mapping[str, Any]) -> Prepared:
    settings = cache_teacher.Config(**kept.model_dump(), **asked)
    return Prepared("distill.cache_teacher", settings, on="teacher")


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the parent's spec. Raises `InputError` for a model that cannot be trained here, or not so."""
    return trained(spec, config)


def chat_template_for(config: Config) -> str | None:
    """Return the setting that needs a chat template, if one does."""
    return "task_chat_template" if config.task_chat_template else None


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what the training takes, the teacher's forward passes included unless they are cached."""
    teacher, length, texts = inputs.get("teacher"), row_length(inputs), texts_of(inputs)
    if teacher is not None and config.cache_teacher is None:
        work = training_work(spec, config, taught_by(teacher, config), length)
        return timed(work, spec, config, teacher, texts)
    work = timed(training_work(spec, config, sequence_length=length), spec, config, None, texts)
    if teacher is None:
        return work
    return _compared(work, spec, config, taught_by(teacher, config), length)


def _compared(work: Work, spec: ModelSpec, config: Config, teaching: Teaching, length: int) -> Work:
    """Return the work with the memory of comparing a cached teacher with the teacher itself, where that is more."""
    memory = comparison_memory(spec, config, teaching, length)
    more: dict[str, object] = {}
    if work.host_memory_bytes:
        more["host_memory_bytes"] = beside_cards(spec, teaching)
    if (peak := total(memory)) > work.peak_memory_bytes:
        helps = (
            () if config.lora else ("`lora: {}` (has few gradients)", "a teacher that is asked as it runs")
        )
        more |= {"peak_memory_bytes": peak, "memory": memory, "remedies": helps}
        more["is_peak_of_one"] = work.devices > 1
    return work.model_copy(update=more)


def taught_by(teacher: ModelSpec, config: Config) -> Teaching:
    """Return how the settings keep the teacher."""
    return Teaching(teacher, config.teacher_precision, config.teacher_device)


def advise(steps: Sequence[Planned]) -> list[str]:
    """Say what looks wrong, and where asking the teacher once would save much."""
    return [*training_advice(steps), *own_teacher_advice(steps), *cache_advice(steps)]


def rehearse(config: Config) -> Config:
    """Return the settings with a few steps of a few sequences, on the device there is."""
    return rehearsed(config).model_copy(update={"teacher_device": "auto"})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the trained model, in the parent's dtypes.

    Raises `InputError` for a teacher with another tokenizer, or too few ids for it, and where hidden states are to be
    compared that do not belong together.
    """
    if config.cache_teacher is not None:
        return _from_cache(parent, config, context)
    from compress.distill.hidden import NOTHING, matching
    from compress.distill.kernel_trial import LossKernel
    from compress.distill.objective import Distillation, Recipe
    from compress.distill.teacher import known_device, load_teacher, shared_ids
    from compress.models.spec import read_spec
    from compress.train.student import train_student

    folder = context.inputs["teacher"].path
    ids = shared_ids(parent.path, folder)
    hidden = matching(parent.path, folder) if config.hidden_weight > 0 else NOTHING
    device = known_device(config.teacher_device)
    teacher = load_teacher(folder, config.precision, config.teacher_precision, device)
    recipe = Recipe(named(config.divergence), config.temperature, config.label_weight, config.hidden_weight)
    kernel = LossKernel(context.partial, context.warn)
    outcome = train_student(
        parent,
        config,
        context,
        lambda student: Distillation(
            student, teacher, recipe, ids.num_ids, ids.of_teacher, hidden, device, kernel
        ),
        taught_by(read_spec(folder), config),
    )
    return _with_facts(outcome, kernel.facts())


def _from_cache(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Train from the cached signals; the facts say how far they are from the teacher itself."""
    from compress.distill.kernel_trial import LossKernel
    from compress.distill.learning import objective_from_cache
    from compress.train.student import train_student

    facts: dict[str, JsonValue] = {}
    kernel = LossKernel(context.partial, context.warn)
    outcome = train_student(
        parent,
        config,
        context,
        lambda student: objective_from_cache(student, parent, config, context, facts, kernel),
    )
    return _with_facts(outcome, {**facts, **kernel.facts()})


def _with_facts(outcome: Outcome, facts: Mapping[str, JsonValue]) -> Outcome:
    return outcome.model_copy(update={"facts": {**outcome.facts, **facts}})
