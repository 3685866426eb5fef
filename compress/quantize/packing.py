"""A float checkpoint rewritten as a packed one, a tensor at a time."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from compress.models.pruning_map import copy_map
from compress.models.shards import Shards, read_shards, write_shards
from compress.models.spec import copy_tokenizer
from compress.plugins import Context
from compress.quantize.grouped import pack, quantize
from compress.records import DTYPE_BYTES, JsonValue, ModelSpec, TensorSpec

GENERATION = "generation_config.json"


def write_packed(source: Path, context: Context, result: ModelSpec, bits: int, group_size: int) -> None:
    """Write into the context's folder the weight files of `result`, rounding the floats in `source`.

    In memory at a time: one float tensor with its working copies, and the scales not yet written.
    """
    shards = read_shards(source)
    home = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    scales: dict[str, Tensor] = {}
    written = 0

    def load(name: str) -> bytes:
        nonlocal written
        written += 1
        context.progress(written, len(result.tensors), "tensors")
        weight, _, part = name.rpartition("_")
        if weight not in home or part not in ("packed", "scale", "shape"):
            return to_bytes(files[home[name]].get_tensor(name))
        if part == "shape":
            return to_bytes(torch.tensor(shards[home[weight]][weight].shape))
        if part == "scale":
            return to_bytes(scales.pop(weight))
        integers, scales[weight] = quantize(files[home[weight]].get_tensor(weight), bits, group_size)
        return to_bytes(pack(integers, bits))

    with ExitStack() as opened:
        # A scale never comes before its words: it is narrower, or follows them.
        files = {file: opened.enter_context(safe_open(source / file, framework="pt")) for file in shards}
        write_shards(context.folder, _packed_shards(shards, result), load)


def to_bytes(tensor: Tensor) -> bytes:
    """Return the tensor's little-endian bytes."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def aligned(tensors: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the tensors in an order that keeps each aligned in a file, since readers view its bytes in place."""
    return dict(sorted(tensors.items(), key=lambda item: -DTYPE_BYTES[item[1].dtype]))


def copy_surroundings(source: Path, folder: Path, config: dict[str, JsonValue]) -> None:
    """Write the configuration and copy what a quantized model inherits: tokenizer, generation settings, pruning map."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(source, folder)
    copy_map(source, folder)
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, folder / GENERATION)


def _packed_shards(shards: Shards, result: ModelSpec) -> Shards:
    """Return the same files with the packed tensors in place of the floats they stand for."""
    return {file: aligned(_packed_shard(tensors, result)) for file, tensors in shards.items()}


def _packed_shard(tensors: dict[str, TensorSpec], result: ModelSpec) -> dict[str, TensorSpec]:
    names = (part for name in tensors for part in (name, f"{name}_shape", f"{name}_packed", f"{name}_scale"))
    return {name: result.tensors[name] for name in names if name in result.tensors}
