"""From a step's inputs to an objective that learns from cached signals, and how far that is from the teacher itself."""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens
from compress.distill import cache_check
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.kernel_trial import LossKernel
from compress.distill.objective import Distillation, Recipe
from compress.distill.signals import TeacherSignals
from compress.distill.teacher import load_teacher, shared_ids
from compress.errors import InputError
from compress.models.device import default_device, has_fast_bf16
from compress.plugins import Context
from compress.records import Artifact, JsonValue
from compress.train.distributed import Team

if TYPE_CHECKING:
    from compress.distill.step import Config


def objective_from_cache(
    student: PreTrainedModel,
    parent: Artifact,
    config: "Config",
    context: Context,
    facts: dict[str, JsonValue],
    kernel: LossKernel,
) -> CachedDistillation:
    """Return the objective; add to `facts` how it differs from the teacher's own, found once at the first start.

    Raises `InputError` where student and teacher do not number the same tokens alike.
    """
    ids = shared_ids(parent.path, context.inputs["teacher"].path)
    if ids.of_teacher is not None:
        raise InputError(
            "cache_teacher: the cached distributions are over the teacher's own tokens, of which the student has a "
            "part; leave out `cache_teacher`"
        )
    signals = TeacherSignals.open(context.inputs["signals"].path)
    held_out = None
    if config.held_out is not None:
        held_out = TeacherSignals.open(context.inputs["held_out_signals"].path)
    objective = CachedDistillation(student, signals, config.label_weight, ids.num_ids, held_out, kernel)

    def check() -> dict[str, JsonValue]:
        found = cache_check.kept(context.partial)
        if found is None:
            found = _differences(student, objective, signals, ids.num_ids, config, context)
            cache_check.keep(context.partial, found)
        return found

    facts.update(Team.current().leader_first(check))
    return objective


def _differences(
    student: PreTrainedModel,
    cached: CachedDistillation,
    signals: TeacherSignals,
    num_ids: int,
    config: "Config",
    context: Context,
) -> dict[str, JsonValue]:
    """Load the teacher for as long as it takes to compare."""
    teacher = load_teacher(context.inputs["teacher"].path, config.precision, config.teacher_precision)
    recipe = Recipe(named("forward_kl"), config.temperature, config.label_weight)
    whole = Distillation(student, teacher, recipe, num_ids, kernel=LossKernel(warn=context.warn))
    data = PackedTokens.open(context.inputs["data"].path)
    batch = cache_check.checked_batch(data, signals.rows, config.attend_across_documents)
    device = torch.device(default_device())
    bf16 = config.precision != "fp32" and has_fast_bf16(device.type)
    whole.to(device), cached.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        found = cache_check.differences(student.eval(), whole, cached, batch.to(device))
    if Team.current().is_launched:  # no device is to hold the whole of it
        cached.to("cpu")
    return found
