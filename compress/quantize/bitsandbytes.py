"""bitsandbytes: 8-bit integers with outliers kept apart (LLM.int8) or 4-bit NF4 (QLoRA).

The library rounds while transformers loads; what it stores is known beforehand, tensor by tensor. The output head
and the embeddings stay in floating point. Its artifacts run on CPUs and CUDA and can be exported nowhere else.
Sources: arXiv 2208.07339 (8 bits), arXiv 2305.14314 (NF4, double quantization).
"""

import json
from collections.abc import Mapping
from math import ceil
from typing import Any, Literal

from pydantic import model_validator

from compress.models.spec import read_spec, stored_dtype
from compress.plugins import Context, StepConfig
from compress.quantize.packed import HEAD, chosen_modules
from compress.records import Artifact, ModelSpec, Outcome, TensorSpec, Work

VERSION = 1
ACCEPTS = ("hf",)
PRODUCES = "bitsandbytes"

BYTES_PER_WEIGHT = {4: 600, 8: 240}
"""Read and written for each weight: a core takes 60 and 24 ns."""
START_SECONDS = 3.0
"""To import the library and build the model."""
BLOCK = 64
"""Weights that share an absolute maximum in NF4."""
NESTED_BLOCK = 256
"""Absolute maxima that share one of their own under double quantization."""
STATE = "quant_state.bitsandbytes__nf4"
"""The tensor that holds a 4-bit weight's shape and settings as JSON."""
LONGEST_FLOAT = 24
"""Characters of the longest JSON number a double can need."""

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class Config(StepConfig):
    """Settings of ``quantize.bitsandbytes``."""

    bits: Literal[4, 8] = 8
    """8: LLM.int8, row-wise integers; 4: NF4 in blocks of 64, computed in the model's own dtype."""
    double_quant: bool = False
    """With 4 bits: quantize the blocks' scales too, saving about 0.4 bits a weight."""

    @model_validator(mode="after")
    def _double_quant_needs_four_bits(self) -> "Config":
        if self.double_quant and self.bits == 8:
            raise ValueError("double_quant is for bits: 4; 8-bit weights have one scale a row")
        return self


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the model with every linear layer but the head quantized."""
    chosen = set(chosen_modules(spec, (HEAD,)))
    tensors: dict[str, TensorSpec] = {}
    for name, tensor in spec.tensors.items():
        if name.removesuffix(".weight") not in chosen:
            tensors[name] = tensor
        elif config.bits == 8:
            tensors |= _int8_tensors(name, tensor)
        else:
            tensors |= _nf4_tensors(name, tensor, config.double_quant)
    quantization = quantization_config(config, TORCH_NAMES[stored_dtype(spec)])
    return spec.model_copy(
        update={"config": {**spec.config, "quantization_config": quantization}, "tensors": tensors}
    )


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Rounding every weight on the processor; the result and the parent's weights, which are read while it grows."""
    result = predict(spec, config).weight_bytes
    return Work(
        bytes_moved=BYTES_PER_WEIGHT[config.bits] * spec.num_parameters,
        disk_bytes_read=spec.weight_bytes,
        serial_seconds=START_SECONDS,
        on_processor=True,
        peak_memory_bytes=spec.weight_bytes + 2 * result,
        disk_bytes=result,
    )


def rehearse(config: Config) -> Config:
    """Return the same settings: they fit any size."""
    return config


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the quantized checkpoint."""
    from compress.quantize.bitsandbytes_checkpoint import write_quantized
    from compress.quantize.packing import copy_surroundings

    predicted = predict(read_spec(parent.path), config)
    write_quantized(parent.path, context.folder, predicted)
    copy_surroundings(parent.path, context.folder, predicted.config)
    return Outcome(spec=read_spec(context.folder))


def quantization_config(config: Config, compute_dtype: str) -> dict[str, Any]:
    """Return the entry of ``config.json`` by which transformers recognizes the layers."""
    if config.bits == 8:
        return {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_use_double_quant": config.double_quant,
    }


def _int8_tensors(name: str, weight: TensorSpec) -> dict[str, TensorSpec]:
    module = name.removesuffix(".weight")
    return {
        name: TensorSpec(shape=weight.shape, dtype="I8"),
        f"{module}.SCB": TensorSpec(shape=weight.shape[:1], dtype="F32"),
        f"{module}.weight_format": TensorSpec(shape=(), dtype="U8"),
    }


def _nf4_tensors(name: str, weight: TensorSpec, double_quant: bool) -> dict[str, TensorSpec]:
    num_blocks = ceil(weight.num_elements / BLOCK)
    tensors = {
        name: TensorSpec(shape=(ceil(weight.num_elements / 2), 1), dtype="U8"),
        f"{name}.absmax": TensorSpec(shape=(num_blocks,), dtype="U8" if double_quant else "F32"),
        f"{name}.quant_map": TensorSpec(shape=(16,), dtype="F32"),
        f"{name}.{STATE}": TensorSpec(shape=(_state_bytes(weight, double_quant),), dtype="U8"),
    }
    if double_quant:
        nested = ceil(num_blocks / NESTED_BLOCK)
        tensors[f"{name}.nested_absmax"] = TensorSpec(shape=(nested,), dtype="F32")
        tensors[f"{name}.nested_quant_map"] = TensorSpec(shape=(256,), dtype="F32")
    return tensors


def _state_bytes(weight: TensorSpec, double_quant: bool) -> int:
    """Return the length of the JSON; with a measured number in it, of the padded JSON we store."""
    dtype, shape = TORCH_NAMES[weight.dtype], list(weight.shape)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": shape}
    if not double_quant:
        return len(json.dumps(state))
    state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0}
    return len(json.dumps(state)) - 1 + LONGEST_FLOAT
