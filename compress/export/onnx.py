"""ONNX: one decoder graph with its key-value cache, for ONNX Runtime and what is built on it.

A packed parent keeps its integers and scales bit for bit (`MatMulNBits` nodes); a float parent is written in fp32, or
with its linear layers rounded to 8-bit integers. Whatever was written is opened again and compared with the parent.

Weights, as predicted and realized sizes count them, are the parent's tensors under their names in the graph: linear
weights with inputs first, integers as bytes in blocks (``weight_packed``), everything float in fp32. Constants that
tracing adds (rotary frequencies, shapes: a few hundred bytes) are not counted.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from compress.errors import InputError
from compress.models.effort import num_layers
from compress.models.family import option
from compress.models.layout import Layout, layout
from compress.models.spec import read_spec
from compress.plugins import Context, StepConfig
from compress.quantize.packed import HEAD, chosen_modules, linear_modules, packing_of
from compress.records import Artifact, ModelSpec, Outcome, TensorSpec, Work

VERSION = 2
ACCEPTS = ("hf", "packed")
PRODUCES = "onnx"

NEEDS = ("onnx", "onnxscript", "onnxruntime")
BLOCKS = (16, 32, 64, 128, 256)
"""How many inputs may share a scale in a `MatMulNBits` node."""
LENGTH_DEPENDENT = frozenset({"dynamic", "longrope", "su"})
"""Kinds of rotary positions that change with the length read: one graph has one of them. ``su`` is an old name of
longrope."""
BYTES_PER_WEIGHT = 150
"""Read and written for each weight: to fp32, rounded or repacked, and compared in both models."""
START_SECONDS = 6.0
"""To import the exporter, and to trace what is outside of layers."""
SECONDS_PER_LAYER = 1.35
"""To trace a layer, and to simplify it in the graph: 17 s of 12 layers of any width."""
FP32_COPIES = 2.3
"""Of the weights in fp32, at most: measured on models of 77M and 268M parameters."""
LOGITS = 6
"""Tensors of all compared tokens' logits, in fp32: each model's, their parts, and the difference."""
COMPARED = 72
"""Tokens whose logits are compared (`onnx_check`)."""
INT8_BLOCK = 32
"""The largest block our own rounding to 8 bits uses."""


class Config(StepConfig):
    """Settings of ``export.onnx``."""

    precision: Literal["fp32", "int8"] | None = None
    """What a float parent's linear layers become: ``fp32`` (the default) or ``int8`` (rounded to 8-bit integers in
    blocks; head and embeddings stay fp32). Not for a packed parent, which keeps its own integers."""
    accuracy_level: Literal[0, 1, 4] = 4
    """How integer layers compute: 4 rounds activations to 8 bits as well; 0 and 1 compute in fp32, exact and slower."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the graph's weights. Raises `InputError` for a layer that fits no block, or a missing extra."""
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        raise InputError(f"export.onnx needs {', '.join(missing)}: pip install 'compress[onnx]'")
    if reason := _why_not(layout(spec.config)) or _why_not_its_positions(spec.config):
        raise InputError(f"export.onnx cannot write {spec.model_type}: {reason}")
    bits, blocks = integer_layers(spec, config)
    transposed = linear_modules(spec)
    tensors: dict[str, TensorSpec] = {}
    for name, shape in layout(spec.config).shapes().items():
        module = name.removesuffix(".weight")
        if module in blocks:
            tensors |= _integer_tensors(name, shape, bits, blocks[module])
        else:
            stored = shape[::-1] if module in transposed else shape
            tensors[name] = TensorSpec(shape=stored, dtype="F32")
    settings = {key: value for key, value in spec.config.items() if key != "quantization_config"}
    return spec.model_copy(update={"config": settings, "tensors": tensors})


def _why_not(model: Layout) -> str | None:
    """Return what the graph, a decoder of plain linear layers under their stored names, has no place for."""
    reasons = {
        "it is an encoder, and the graph is a decoder's": option(model.family, "ENCODER"),
        "its weights are Conv1D, and the graph's are linear layers": option(model.family, "LINEAR_IS_IN_OUT"),
        "it has experts": model.num_experts,
        "its head has another name in the live model than in its files": option(model.family, "LIVE"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _why_not_its_positions(config: Mapping[str, Any]) -> str | None:
    """Return why one graph cannot rotate positions as the model does: some rotate by how many tokens there are."""
    ropes = [config.get(name) for name in ("rope_parameters", "rope_scaling")]
    # A rotation for each kind of layer, or one for all.
    every = [rope for found in ropes if isinstance(found, dict) for rope in (found, *found.values())]
    kinds = {str(rope.get("rope_type") or rope.get("type")) for rope in every if isinstance(rope, dict)}
    by_length = sorted(kinds & LENGTH_DEPENDENT)
    return f"it rotates positions by how many tokens it has read ({by_length[0]})" if by_length else None


def integer_layers(spec: ModelSpec, config: Config) -> tuple[int, dict[str, int]]:
    """Return the bits of the graph's integers and the block size of every integer layer, by module name."""
    if "quantization_config" in spec.config:
        if config.precision is not None:
            raise InputError(
                f"precision: {config.precision} is for float parents; this one is packed and keeps its integers. "
                "Leave precision out, or export with 'from:' the step before it was quantized"
            )
        bits, group_size = packing_of(spec.config)
        # A group that is no power of two becomes several blocks with the same scale.
        packed = [n.removesuffix(".weight_packed") for n in spec.tensors if n.endswith(".weight_packed")]
        return bits, {module: _block(group_size, BLOCKS[-1], module) for module in packed}
    if config.precision == "int8":
        inputs = {module: tensor.shape[1] for module, tensor in linear_modules(spec).items()}
        return 8, {m: _block(inputs[m], INT8_BLOCK, m) for m in chosen_modules(spec, (HEAD,))}
    return 0, {}


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Some hundred tokens through both models.

    In memory are the parent in fp32, on its way and to compare with, the graph, the runtime's copy, and logits.
    """
    result = predict(spec, config).weight_bytes
    logits = LOGITS * 4 * COMPARED * int(spec.config.get("vocab_size") or 0)
    return Work(
        flops=2 * 2 * 200.0 * spec.num_parameters,
        bytes_moved=BYTES_PER_WEIGHT * spec.num_parameters + 6.0 * result,
        disk_bytes_read=spec.weight_bytes + 2.0 * result,
        serial_seconds=START_SECONDS + SECONDS_PER_LAYER * num_layers(spec),
        on_processor=True,
        peak_memory_bytes=round(FP32_COPIES * 4 * spec.num_parameters) + 2 * result + logits,
        disk_bytes=result,
    )


def rehearse(config: Config) -> Config:
    """Return the same settings: they fit any size."""
    return config


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write ``model.onnx``, configuration and tokenizer. Raises `StepFailed` when its logits are not the parent's."""
    from compress.export.onnx_check import check
    from compress.export.onnx_graph import read_weights, write_graph
    from compress.quantize.packing import copy_surroundings

    spec = read_spec(parent.path)
    predicted = predict(spec, config)
    context.progress(0, 3, "stages")
    write_graph(parent.path, context.folder, predicted, *integer_layers(spec, config), config.accuracy_level)
    copy_surroundings(parent.path, context.folder, predicted.config)
    context.progress(1, 3, "stages")
    realized = predicted.model_copy(update={"tensors": read_weights(context.folder)})
    context.progress(2, 3, "stages")
    facts = check(parent, context.folder, exact=_is_exact(spec, config), seed=context.seed)
    context.progress(3, 3, "stages")
    return Outcome(spec=realized, facts=facts)


def _is_exact(spec: ModelSpec, config: Config) -> bool:
    """Whether nothing is rounded on the way from the parent's weights to the logits."""
    _, blocks = integer_layers(spec, config)
    return not blocks or (config.precision is None and config.accuracy_level != 4)


def _integer_tensors(name: str, shape: tuple[int, ...], bits: int, block: int) -> dict[str, TensorSpec]:
    num_outputs, num_inputs = shape
    num_blocks = num_inputs // block
    return {
        f"{name}_packed": TensorSpec(shape=(num_outputs, num_blocks, block * bits // 8), dtype="U8"),
        f"{name}_scale": TensorSpec(shape=(num_outputs, num_blocks), dtype="F32"),
    }


def _block(size: int, largest: int, module: str) -> int:
    """Return the largest block that divides `size`."""
    fitting = [block for block in BLOCKS if size % block == 0 and block <= largest]
    if not fitting:
        raise InputError(
            f"{module}: blocks of {BLOCKS[0]} inputs do not divide {size}; ONNX Runtime takes no smaller"
        )
    return fitting[-1]
