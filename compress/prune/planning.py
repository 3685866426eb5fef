"""What both pruning steps predict: the smaller model, and the work of choosing what stays."""

from compress.models.layout import Layout
from compress.records import ModelSpec, TensorSpec, Work

ASSUMED_LENGTH = 2048
"""Tokens a calibration sequence is taken to have before the data exists, if the model reads that many."""

ACTIVATION_BYTES = 2**30
"""Room for the activations of one calibration batch."""


def pruned_spec(spec: ModelSpec, after: Layout) -> ModelSpec:
    """Return the model of the smaller layout, each tensor in the dtype it has in the parent."""
    tensors = {
        name: TensorSpec(shape=shape, dtype=spec.tensors[name].dtype)
        for name, shape in after.shapes().items()
    }
    return ModelSpec(config=after.config, tensors=tensors, num_parameters=after.num_parameters)


def calibrated_work(before: ModelSpec, after: ModelSpec, samples: int) -> Work:
    """Return the work of one forward pass over the calibration data and of writing the result."""
    length = min(ASSUMED_LENGTH, int(before.config.get("max_position_embeddings", ASSUMED_LENGTH)))
    return Work(
        flops=2.0 * before.num_parameters * samples * length,
        peak_memory_bytes=before.weight_bytes + ACTIVATION_BYTES,
        disk_bytes=after.weight_bytes,
    )
