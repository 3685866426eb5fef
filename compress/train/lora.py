"""Training a few per cent of the weights: low-rank adapters beside frozen matrices, added to them at the end.

``W + (α / r) · B A`` with A ``[r, in]`` drawn at random and B ``[out, r]`` zero, so that training starts at the parent
(Hu et al. 2021, arXiv:2106.09685). Adapters are put into the model in place: it stays the transformers model that the
output head and hidden-state hooks know.
"""

import warnings
from collections.abc import Iterator

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.train.adapters import adapted
from compress.train.settings import Lora

ADAPTER = "default"


def add_adapters(student: PreTrainedModel, settings: Lora, seed: int) -> LoraModel:
    """Freeze the student and put adapters beside its linear layers; return what can merge them.

    Raises `InputError` for a target that is no linear layer of the student's body.
    """
    linear = dict(_linear_layers(student))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,
        target_modules=adapted(linear, settings.targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
    )
    with torch.random.fork_rng([]), warnings.catch_warnings():
        # peft plans for fused experts too; `num_in_experts` is for saying that they stay as they are.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        torch.manual_seed(seed)
        return LoraModel(student, config, ADAPTER)


def merge(adapters: LoraModel) -> None:
    """Add the adapters to their matrices and take them out: the student has its parent's layers again."""
    adapters.merge_and_unload()


def num_in_experts(student: PreTrainedModel) -> int:
    """Return how many weights are matrices of fused experts, one tensor for all: no linear layer to adapt."""
    return sum(p.numel() for p in student.parameters() if p.ndim > 2)


def _linear_layers(student: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield every linear layer but the head: a loss reads its matrix directly, and embeddings may share it."""
    head = student.get_output_embeddings()
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module
