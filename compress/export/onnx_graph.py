"""The decoder graph: traced by transformers without weights, tidied, then given the parent's weights by name.

Tracing sees shapes only, so no float copy of the model is ever made; weights are read, converted and written one by
one. It is traced at fixed sizes, which are made free afterwards (`onnx_sizes`); where it is not sure how, with symbolic
ones, which takes four times as long.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from compress.export.onnx_sizes import NotUnderstood, Sizes, free_sizes, sizes_for
from compress.export.onnx_weights import Array, Weights
from compress.models.checkpoint import quiet
from compress.quantize.packed import HEAD
from compress.records import ModelSpec, TensorSpec

logger = logging.getLogger(__name__)

MODEL = "model.onnx"
EMBEDDED = 2**31 - 2**24
"""Bytes of weights up to which they live in the graph's own file; protobuf ends at 2 GiB."""
ONNX_DTYPES = {"F32": ir.DataType.FLOAT, "U8": ir.DataType.UINT8}
SYMBOLIC = Sizes(batch=2, new=3, past=5)
"""Where symbols stand for sizes: none is 1, which tracing would take for fixed."""
WEIGHTS = (".weight", ".bias", ".weight_packed", ".weight_scale")


def write_graph(
    source: Path, folder: Path, result: ModelSpec, bits: int, blocks: dict[str, int], accuracy_level: int
) -> None:
    """Write ``model.onnx`` with the weights of `result`, from the checkpoint in `source`.

    `blocks`: the block size of every layer that computes with `bits`-bit integers.
    """
    model = trace(result.config)
    graph = model.graph
    _tie_head(graph, result)
    _tidy(model)
    transposed = _insert_linear_layers(model, blocks, bits, accuracy_level)
    with Weights(source, result, bits, transposed) as weights:
        _insert_weights(graph, result, weights.load)
        external = f"{MODEL}.data" if result.weight_bytes > EMBEDDED else None
        ir.save(model, folder / MODEL, external_data=external)


def read_weights(folder: Path) -> dict[str, TensorSpec]:
    """Return the weights a graph file holds: its named parameters, without the constants tracing made."""
    names = {dtype: name for name, dtype in ONNX_DTYPES.items()}
    return {
        name: TensorSpec(shape=tuple(value.const_value.shape.numpy()), dtype=names[value.const_value.dtype])
        for name, value in ir.load(folder / MODEL).graph.initializers.items()
        if name.endswith(WEIGHTS)
    }


def trace(config: dict[str, Any]) -> ir.Model:
    """Return the graph of a model of this configuration: its parameters have no values, its buffers have.

    It reads any number of tokens after any number of cached ones, in batches of any size and padding.
    """
    sizes = sizes_for(config)
    if sizes is not None:
        model = _traced(config, sizes, is_free=False)
        try:
            free_sizes(model, sizes)
        except NotUnderstood as reason:
            logger.debug("traced again with symbolic sizes: %s", reason)
        else:
            return model
    return _traced(config, SYMBOLIC, is_free=True)


def _traced(config: dict[str, Any], sizes: Sizes, is_free: bool) -> ir.Model:
    """Return the graph as traced, with the interface other runtimes expect. is_free: with symbols for its sizes."""
    with quiet(), init_empty_weights(include_buffers=False):
        settings = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = _sample_inputs(model.to("meta"), sizes)
    shapes = _dynamic_shapes(inputs) if is_free else None
    with _silence():
        exported = OnnxExporter().export(
            # Its optimizer would fold and merge weights until they have neither name nor shape: `_tidy` does not.
            model, inputs, OnnxConfig(dynamic=is_free, dynamic_shapes=shapes, optimize=False)
        )  # fmt: skip
    graph = exported.program.graph
    for name in buffers.keys() & graph.initializers.keys():
        graph.initializers[name].const_value = ir.tensor(buffers[name].numpy(), name=name)
    _name_interface(graph)
    return exported.program


def _sample_inputs(model: PreTrainedModel, sizes: Sizes) -> dict[str, Any]:
    """Return new tokens after cached ones, as shapes."""
    batch, new, past = sizes
    cache = DynamicCache()  # keeps everything: the mask alone limits what a sliding-window layer sees
    with torch.no_grad():
        model(
            torch.zeros(batch, past, dtype=torch.int64, device="meta"), past_key_values=cache, use_cache=True
        )
    return {
        "input_ids": torch.zeros(batch, new, dtype=torch.int64, device="meta"),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64, device="meta"),
        "position_ids": torch.zeros(batch, new, dtype=torch.int64, device="meta"),
        "past_key_values": cache,
    }


def _dynamic_shapes(inputs: dict[str, Any]) -> dict[str, Any]:
    auto = torch.export.Dim.AUTO
    num_cached = 2 * len(inputs["past_key_values"].layers)
    shapes: dict[str, Any] = {name: {0: auto, 1: auto} for name in inputs if name != "past_key_values"}
    return shapes | {"past_key_values": [{0: auto, 2: auto}] * num_cached}


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what the exporters say to their own developers."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _name_interface(graph: ir.Graph) -> None:
    """Give inputs, outputs and free sizes the names other runtimes expect (``past_key_values.0.key``)."""
    for value, side, length in (
        *((value, "past_key_values", "past_sequence_length") for value in graph.inputs),
        *((value, "present", "total_sequence_length") for value in graph.outputs),
    ):
        if cached := re.fullmatch(r".*\.layers\.(\d+)\.(key|value)s", value.name):
            value.name = f"{side}.{cached[1]}.{cached[2]}"
            value.shape = ir.Shape(["batch_size", value.shape[1], length, value.shape[3]])
        else:
            tokens = "total_sequence_length" if value.name == "attention_mask" else "sequence_length"
            value.shape = ir.Shape(["batch_size", tokens, *value.shape[2:]])


def _tie_head(graph: ir.Graph, result: ModelSpec) -> None:
    """Let a tied head, which tracing without values took for a weight of its own, read the embedding."""
    head = graph.initializers[f"{HEAD}.weight"]
    if not any(name.startswith(f"{HEAD}.") for name in result.tensors):
        embedding = next(name for name in result.tensors if name.endswith("embed_tokens.weight"))
        ir.convenience.replace_all_uses_with(head, graph.initializers[embedding])
        del graph.initializers[head.name]


def _tidy(model: ir.Model) -> None:
    """Shorten the traced graph, leaving every parameter whole and under its name."""

    def touches_no_parameter(node: ir.Node) -> bool:
        return not any(value is not None and value.name.endswith(WEIGHTS) for value in node.inputs)

    fold_constants(model, onnx_shape_inference=False, should_fold=touches_no_parameter)
    for tidy in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        tidy(model)
    outputs = set(model.graph.outputs)
    for value in (value for node in model.graph for value in node.outputs if value not in outputs):
        # Inner shapes name sizes by the tracer's symbols, not ours; runtimes infer them again.
        value.shape = value.type = None


def _insert_linear_layers(
    model: ir.Model, blocks: dict[str, int], bits: int, accuracy_level: int
) -> set[str]:
    """Turn ``MatMul(x, Transpose(weight))`` into an integer product, or one with the weight stored transposed.

    Returns the names of the transposed weights.
    """
    transposed = set()
    if blocks:
        model.opset_imports["com.microsoft"] = 1
    for node in list(model.graph):
        transpose = (
            node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        )
        weight = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer():
            continue
        module = weight.name.removesuffix(".weight")
        if module in blocks:
            _insert_integer_product(model.graph, node, weight, bits, blocks[module], accuracy_level)
        elif len(weight.uses()) == 1:  # a tied head is also the embedding, which is read by rows
            node.replace_input_with(1, weight)
            transposed.add(weight.name)
    common.RemoveUnusedNodesPass()(model)
    return transposed


def _insert_integer_product(
    graph: ir.Graph, node: ir.Node, weight: ir.Value, bits: int, block: int, accuracy_level: int
) -> None:
    num_outputs, num_inputs = weight.shape.numpy()
    parts = [ir.Value(name=f"{weight.name}_{part}") for part in ("packed", "scale")]
    for part in parts:
        graph.initializers[part.name] = part
    attributes = {"K": num_inputs, "N": num_outputs, "bits": bits, "block_size": block}
    product = ir.node(
        "MatMulNBits",
        [node.inputs[0], *parts],
        {**attributes, "accuracy_level": accuracy_level},
        domain="com.microsoft",
        name=weight.name.removesuffix(".weight"),
    )
    product.outputs[0].name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def _insert_weights(graph: ir.Graph, result: ModelSpec, load: Callable[[str], Array]) -> None:
    """Give every weight its shape, and its values when the file is written."""
    for name, spec in result.tensors.items():
        value = graph.initializers[name]
        value.shape = ir.Shape(spec.shape)
        value.dtype = dtype = ONNX_DTYPES[spec.dtype]
        value.const_value = ir.LazyTensor(
            partial(_as_tensor, load, name), dtype=dtype, shape=ir.Shape(spec.shape), name=name
        )


def _as_tensor(load: Callable[[str], Array], name: str) -> ir.Tensor:
    return ir.tensor(load(name), name=name)
