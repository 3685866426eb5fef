"""Round to nearest: every weight to the closest multiple of its group's scale. The plain reference.

Nothing is calibrated, so it costs seconds and shows what better methods gain. The output head and the embeddings
stay in floating point, where rounding hurts most. One tensor is in memory at a time, whatever the model's size.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from compress.models.spec import read_spec
from compress.plugins import Context, StepConfig
from compress.quantize.packed import chosen_modules, largest_group, packed_spec, packing_of
from compress.records import Artifact, ModelSpec, Outcome, Work

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "packed"

BYTES_PER_WEIGHT = 300
"""Read and written for each weight, in fp32: scaling, rounding, clamping, packing. It takes a core 30 ns."""


class Config(StepConfig):
    """Settings of ``quantize.rtn``."""

    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    group_size: Annotated[int, Field(ge=16, multiple_of=16)] | None = None
    """Inputs that share a scale; must divide every quantized layer's input size. Smaller: more exact, larger file.
    Left out: 128, or the largest of 64, 32 and 16 that divides them all."""
    skip: tuple[str, ...] = ("lm_head",)
    """Linear layers to keep in floating point: any whose dotted name contains one of these (``down_proj``,
    ``layers.0``)."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the packed model. Raises `InputError` when `group_size` does not divide a layer's input."""
    modules = chosen_modules(spec, config.skip)
    return packed_spec(spec, config.bits, config.group_size or largest_group(spec, modules), modules)


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Reading, rounding and writing every weight on the processor; the largest tensor in fp32 with its copies.

    What is not rounded, as embeddings are, is only copied.
    """
    result = predict(spec, config)
    rounded = max(
        (t.num_elements for name, t in spec.tensors.items() if name not in result.tensors), default=0
    )
    copied = max((t.num_bytes for name, t in spec.tensors.items() if name in result.tensors), default=0)
    return Work(
        bytes_moved=BYTES_PER_WEIGHT * spec.num_parameters,
        disk_bytes_read=spec.weight_bytes,
        on_processor=True,
        peak_memory_bytes=max(16 * rounded, 2 * copied),
        disk_bytes=result.weight_bytes,
    )


def rehearse(config: Config) -> Config:
    """Return groups small enough for any rehearsal model."""
    return config.model_copy(update={"group_size": 16})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the packed checkpoint."""
    from compress.quantize.packing import copy_surroundings, write_packed

    predicted = predict(read_spec(parent.path), config)
    write_packed(parent.path, context, predicted, *packing_of(predicted.config))
    copy_surroundings(parent.path, context.folder, predicted.config)
    return Outcome(spec=read_spec(context.folder))
