"""Rounding with bitsandbytes: transformers quantizes while it loads; we write what it then holds.

Written by us, not by `save_pretrained`, because double quantization puts a measured number into a JSON text, whose
digits would otherwise decide the size of the file.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from compress.models.checkpoint import DTYPES, auto_class, quiet
from compress.models.layout import layout
from compress.models.shards import WEIGHTS, write_shards
from compress.models.spec import read_spec, stored_dtype
from compress.quantize.packing import aligned, to_bytes
from compress.records import ModelSpec


def write_quantized(source: Path, folder: Path, result: ModelSpec) -> None:
    """Write the weight file of `result`, whose configuration names the method, rounding the floats in `source`."""
    with quiet():
        # Rounded on the CPU, so that the bytes do not depend on which accelerator there is.
        model = auto_class(result.config).from_pretrained(
            source,
            dtype=DTYPES[stored_dtype(read_spec(source))],
            quantization_config=BitsAndBytesConfig.from_dict(result.config["quantization_config"]),
            device_map="cpu",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    state: dict[str, Tensor] = model.state_dict()
    live = layout(result.config).live_tensor
    write_shards(
        folder,
        {WEIGHTS: aligned(result.tensors)},
        lambda name: to_bytes(_padded(state[live(name)], result.tensors[name].num_elements)),
    )


def _padded(tensor: Tensor, num_elements: int) -> Tensor:
    """Return a JSON text with spaces up to its predicted length; any other tensor already has it."""
    missing = num_elements - tensor.numel()
    return torch.cat([tensor, tensor.new_full((missing,), ord(" "))]) if missing else tensor
