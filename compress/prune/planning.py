"""What pruning steps predict: the smaller model, and the work of choosing what stays."""

from compress.models.layout import Layout
from compress.models.spec import stored_dtype
from compress.records import DTYPE_BYTES, ModelSpec, TensorSpec, Work

ACTIVATION_BYTES = 2**30
"""Room for the activations of one calibration batch, and for the sums of a layer."""

REFITS = 3.0
"""Forward passes that refitting takes beyond scoring: the parent's, and the student's as far as each of its maps."""


def pruned_spec(spec: ModelSpec, after: Layout) -> ModelSpec:
    """Return the model of the smaller layout, each tensor in the dtype it has in the parent."""
    usual = stored_dtype(spec)
    tensors = {
        name: TensorSpec(shape=shape, dtype=spec.tensors[name].dtype if name in spec.tensors else usual)
        for name, shape in after.shapes().items()
    }
    return ModelSpec(config=after.config, tensors=tensors, num_parameters=after.num_parameters)


def float_bytes(spec: ModelSpec) -> int:
    """Return the bytes of a stored weight."""
    return DTYPE_BYTES[stored_dtype(spec)]


def calibrated_work(before: ModelSpec, after: ModelSpec, tokens: int, passes: float, streamed: bool) -> Work:
    """Return the work of forward passes over the calibration data and of writing the result."""
    held = (
        before.weight_bytes / (before.config.get("num_hidden_layers") or 1)
        if streamed
        else before.weight_bytes
    )
    return Work(
        flops=2.0 * before.num_parameters * tokens * passes,
        peak_memory_bytes=int(held) + ACTIVATION_BYTES,
        disk_bytes=after.weight_bytes,
    )
