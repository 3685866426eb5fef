"""What training takes, from the settings and shapes alone."""

from collections.abc import Mapping

from compress.records import JsonValue, ModelSpec, Work
from compress.train.settings import TrainingSettings

STATE_BYTES = 16
"""A trained parameter: fp32 weight, gradient, and AdamW's two moments."""
CHECKPOINT_BYTES = 12
"""A trained parameter in a checkpoint. For a moment there are two: the next is written before the last is dropped."""
PROCESS_BYTES = 500 * 2**20
"""Python with torch and transformers, before any model."""
SMALL_MICRO_BATCH = 2_048


def training_work(spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None = None) -> Work:
    """Return about what training a model takes, with a teacher beside it or without.

    FLOPs are 2 per parameter and token forward, 4 backward (Kaplan et al. 2020, §2.1). Memory is for a small
    micro-batch: the loop takes a larger one where there is room.
    """
    flops = 6.0 * spec.num_parameters * settings.tokens
    memory = PROCESS_BYTES + STATE_BYTES * spec.num_parameters
    memory += SMALL_MICRO_BATCH * activation_bytes_per_token(spec.config)
    if teacher:
        flops += 2.0 * teacher.num_parameters * settings.tokens
        memory += teacher.weight_bytes
    disk = spec.weight_bytes + 2 * CHECKPOINT_BYTES * spec.num_parameters
    return Work(flops=flops, peak_memory_bytes=int(memory), disk_bytes=disk)


def activation_bytes_per_token(config: Mapping[str, JsonValue]) -> int:
    """Return about how much a decoder keeps per token between forward and backward, in mixed precision.

    A layer keeps its residual stream and norms (about 10 copies of the hidden state in fp32 and as many in
    bf16) and its gated MLP's inner states (about 5 copies in bf16).
    """
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    return layers * (60 * hidden + 10 * inner)
