"""What a packed checkpoint looks like, without its numbers: the compressed-tensors `pack-quantized` layout.

In place of ``x.weight`` it stores ``x.weight_packed`` (32-bit words of integers), ``x.weight_scale`` (one a group, in
the weight's dtype) and ``x.weight_shape``; everything else as it was. ``config.json`` says how to read it.
"""

from collections.abc import Iterable, Sequence
from math import gcd
from typing import Any

from compress.errors import InputError, nearest
from compress.models.family import option
from compress.models.layout import layout
from compress.records import ModelSpec, TensorSpec

HEAD = "lm_head"
"""What settings call the output head, whatever its name in a family."""

GROUP_SIZES = (128, 64, 32, 16)
"""Inputs that share a scale: what runtimes have kernels for, and what is left where a width is odd."""


def linear_modules(spec: ModelSpec) -> dict[str, TensorSpec]:
    """Return the stored weight of every linear layer, by module name (``model.layers.0.mlp.up_proj``).

    Raises `InputError` for a family whose layers are none that quantizers know.
    """
    model = layout(spec.config)
    if option(model.family, "LINEAR_IS_IN_OUT"):
        raise InputError(
            f"{spec.model_type} has no linear layers that can be quantized: its weights are Conv1D"
        )
    if model.num_experts:
        raise InputError(
            f"{spec.model_type} cannot be quantized: transformers holds the experts of a layer in one tensor, "
            "which is no linear layer"
        )
    tables = ("vocab", "positions", "segments")
    matrices = {
        name
        for name, axes in model.tensors.items()
        if len(axes) == 2 and (axes[0] not in tables or name == model.head)
    }
    return {name.removesuffix(".weight"): spec.tensors[name] for name in spec.tensors if name in matrices}


def head_module(spec: ModelSpec) -> str:
    """Return the module name of the output head, stored or tied to the embedding: ``lm_head``."""
    rows = layout(spec.config).family.TENSORS.items()
    heads = (name for name, row in rows if row.unless == "tie_word_embeddings" and name.endswith(".weight"))
    return next(heads, HEAD).removesuffix(".weight")


def chosen_modules(spec: ModelSpec, skip: Sequence[str]) -> list[str]:
    """Return the linear layers to quantize: all but those whose dotted name contains an entry of `skip`.

    ``lm_head`` means the output head whatever the family calls it. Raises `InputError` for an entry that no layer's
    name contains.
    """
    head, linear = head_module(spec), linear_modules(spec)
    skipped = [head if entry == HEAD else entry for entry in skip]
    for entry in skipped:
        if not any(_contains(name, entry) for name in (*linear, head)):
            parts = {part for name in (*linear, head) for part in name.split(".")}
            raise InputError(f"skip: no linear layer's name contains '{entry}'{nearest(entry, parts)}")
    return [name for name in linear if not any(_contains(name, entry) for entry in skipped)]


def largest_group(spec: ModelSpec, modules: Iterable[str]) -> int:
    """Return the largest of `GROUP_SIZES` that divides the inputs of all these layers, the smallest where none does."""
    linear = linear_modules(spec)
    inputs = gcd(*(linear[name].shape[1] for name in modules))
    return next((size for size in GROUP_SIZES if inputs % size == 0), GROUP_SIZES[-1])


def packed_spec(spec: ModelSpec, bits: int, group_size: int, modules: Iterable[str]) -> ModelSpec:
    """Return the model with those layers packed. Raises `InputError` when groups do not fill a layer's input."""
    chosen = set(modules)
    linear = linear_modules(spec)
    _check_groups({name: linear[name] for name in sorted(chosen)}, group_size)
    tensors: dict[str, TensorSpec] = {}
    for name, tensor in spec.tensors.items():
        if name.removesuffix(".weight") in chosen:
            tensors |= _packed_tensors(name, tensor, bits, group_size)
        else:
            tensors[name] = tensor
    model = layout(spec.config)
    ignored = sorted(map(model.live, {*linear, head_module(spec)} - chosen))
    config = {**spec.config, "quantization_config": quantization_config(bits, group_size, ignored)}
    return spec.model_copy(update={"config": config, "tensors": tensors})


def quantization_config(bits: int, group_size: int, ignored: Sequence[str]) -> dict[str, Any]:
    """Return the entry of ``config.json`` by which transformers and vLLM recognize the layout."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": "pack-quantized"}},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }


def packing_of(config: dict[str, Any]) -> tuple[int, int]:
    """Return ``(bits, group_size)`` of a packed model's configuration."""
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    return weights["num_bits"], weights["group_size"]


def _packed_tensors(name: str, weight: TensorSpec, bits: int, group_size: int) -> dict[str, TensorSpec]:
    num_outputs, num_inputs = weight.shape
    return {
        f"{name}_packed": TensorSpec(shape=(num_outputs, num_inputs * bits // 32), dtype="I32"),
        f"{name}_scale": TensorSpec(shape=(num_outputs, num_inputs // group_size), dtype=weight.dtype),
        f"{name}_shape": TensorSpec(shape=(2,), dtype="I64"),
    }


def _check_groups(weights: dict[str, TensorSpec], group_size: int) -> None:
    for name, weight in weights.items():
        if weight.shape[1] % group_size:
            common = gcd(*(weight.shape[1] for weight in weights.values()))
            fitting = ", ".join(str(size) for size in (256, 128, 64, 32, 16) if common % size == 0)
            raise InputError(
                f"group_size: {group_size} does not divide the {weight.shape[1]} inputs of {name}. "
                f"Sizes that divide every quantized layer: {fitting or 'none; skip the layers that do not fit'}. Where "
                f"prune.width made it so narrow, `align: {{hidden: {group_size}, ffn: {group_size}}}` makes it fit"
            )


def _contains(module: str, entry: str) -> bool:
    return f".{entry}." in f".{module}."
