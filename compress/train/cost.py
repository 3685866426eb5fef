"""What training takes, from the settings and shapes alone."""

import re
from collections.abc import Mapping

from compress.environment import device_class
from compress.records import JsonValue, ModelSpec, TensorSpec, Work
from compress.train.launch import Launch
from compress.train.settings import TrainingSettings

WEIGHT_BYTES = 4
"""A parameter, trained or not: the student is fp32."""
LEARNING_BYTES = 12
"""What a trained parameter has besides: gradient and AdamW's two moments, in fp32."""
CHECKPOINT_BYTES = 12
"""A trained parameter in a checkpoint. For a moment there are two: the next is written before the last is dropped."""
PROCESS_BYTES = 500 * 2**20
"""Python with torch and transformers, before any model."""
SMALL_MICRO_BATCH = 2_048


def training_work(spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None = None) -> Work:
    """Return about what training a model takes, with a teacher beside it or without.

    FLOPs are 2 per parameter and token forward, 4 backward (Kaplan et al. 2020, §2.1). Memory is for a small
    micro-batch: the loop takes a larger one where there is room. Launched on cards, it is that of each card, and the
    cards share the work. Without cards it is that of each machine, and only machines share: one process has all cores.
    """
    flops = 6.0 * spec.num_parameters * settings.tokens
    trained = num_trained(spec, settings)
    held = WEIGHT_BYTES * spec.num_parameters + LEARNING_BYTES * trained
    each = PROCESS_BYTES + SMALL_MICRO_BATCH * activation_bytes_per_token(spec.config)
    if teacher:
        flops += 2.0 * teacher.num_parameters * settings.tokens
        held += teacher.weight_bytes
    if settings.launch is not None:
        each += gathered_bytes(spec, teacher)
    processes, devices = team(settings.launch or Launch())
    memory = processes * each + held // devices
    disk = spec.weight_bytes + 2 * CHECKPOINT_BYTES * trained
    return Work(flops=flops, peak_memory_bytes=int(memory), disk_bytes=disk, devices=devices)


def team(launch: Launch) -> tuple[int, int]:
    """Return how many processes share a device's memory, and how many devices there are: cards, or machines."""
    if device_class() == "cpu":
        return launch.processes, launch.nodes
    return 1, launch.processes * launch.nodes


def gathered_bytes(spec: ModelSpec, teacher: ModelSpec | None) -> int:
    """Return about what each process of a team holds whole: what lies outside the layers (embeddings, head).

    The student's has gathered weights and gradients, in fp32; the teacher's is as stored, and never sharded.
    """
    student = sum(2 * WEIGHT_BYTES * tensor.num_elements for tensor in _outside_layers(spec))
    return student + (sum(tensor.num_bytes for tensor in _outside_layers(teacher)) if teacher else 0)


def _outside_layers(spec: ModelSpec) -> list[TensorSpec]:
    return [tensor for name, tensor in spec.tensors.items() if not re.search(r"\.\d+\.", name)]


def num_trained(spec: ModelSpec, settings: TrainingSettings) -> int:
    """Return how many parameters learn: all, or those of adapters, ``rank · (rows + columns)`` of each matrix."""
    if settings.lora is None:
        return spec.num_parameters
    vocabulary, targets = spec.config.get("vocab_size"), settings.lora.targets
    matrices = [
        tensor.shape
        for name, tensor in spec.tensors.items()
        if len(tensor.shape) == 2
        and vocabulary not in tensor.shape
        and (targets == "all-linear" or name.removesuffix(".weight").rpartition(".")[2] in targets)
    ]
    return settings.lora.rank * sum(rows + columns for rows, columns in matrices)


def activation_bytes_per_token(config: Mapping[str, JsonValue]) -> int:
    """Return about how much a decoder keeps per token between forward and backward, in mixed precision.

    A layer keeps its residual stream and norms (about 10 copies of the hidden state in fp32 and as many in
    bf16) and its gated MLP's inner states (about 5 copies in bf16).
    """
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    return layers * (60 * hidden + 10 * inner)
