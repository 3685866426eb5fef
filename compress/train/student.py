"""From a parent checkpoint to a trained one: what `train` and `distill` share around the loop."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens
from compress.models.checkpoint import DTYPES, load_model, save_model
from compress.models.pruning_map import copy_map
from compress.models.spec import read_spec, stored_dtype
from compress.plugins import Context
from compress.records import Artifact, ModelSpec, Outcome
from compress.train.loop import fit
from compress.train.settings import TrainingSettings


def train_student(
    parent: Artifact,
    settings: TrainingSettings,
    context: Context,
    objective: Callable[[PreTrainedModel], nn.Module],
) -> Outcome:
    """Train the parent's model by the objective built around it; write it in the parent's dtypes."""
    student = load_model(parent.path, dtype=torch.float32)
    data = PackedTokens.open(context.inputs["data"].path)
    facts = fit(objective(student), student, data, settings, context)
    _store_like(read_spec(parent.path), student.to("cpu"))
    save_model(student, context.folder, like=parent.path)
    copy_map(parent.path, context.folder)
    return Outcome(spec=read_spec(context.folder), facts=facts)


def _store_like(spec: ModelSpec, student: PreTrainedModel) -> None:
    usual = stored_dtype(spec)
    for name, parameter in student.named_parameters():
        stored = spec.tensors.get(name)
        parameter.data = parameter.data.to(DTYPES[stored.dtype if stored else usual])
